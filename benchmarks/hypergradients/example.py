"""Learn how strongly to regularise each pixel of a digit classifier.

python -m benchmarks.hypergradients.example [picture.png]
"""

import sys

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from shared.hypergrad import ConjugateGradient, hypergrad

torch.set_num_threads(1)
x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
x = x.double() / 16
order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, val, test = order.split([150, 750, 897])
# theta: the weights of a logistic regression; lam: the log penalty of each pixel
W = torch.zeros(64, 10, dtype=torch.float64, requires_grad=True)
lam = torch.full((64,), -5.0, dtype=torch.float64, requires_grad=True)


def inner():  # what the weights minimise, given lam
    return cross_entropy(x[train] @ W, y[train]) + 0.5 * (lam.exp()[:, None] * W**2).sum()


def outer():  # what lam minimises, through the weights
    return cross_entropy(x[val] @ W, y[val])


def closure():
    weights.zero_grad()
    loss = inner()
    loss.backward()
    return loss


weights = torch.optim.LBFGS([W], max_iter=50, line_search_fn="strong_wolfe")
penalties = torch.optim.Adam([lam], lr=0.2)
for step in range(41):
    weights.step(closure)  # to the minimum, from the last one
    if step % 10 == 0:
        accuracy = (x[test] @ W).argmax(1).eq(y[test]).double().mean()
        print(f"step {step:2d}  validation loss {outer().item():.4f}  test accuracy {accuracy:.4f}")
    lam.grad = hypergrad(outer, inner, [W], [lam], None, ConjugateGradient(20)).grads[0]
    penalties.step()

plt.imshow(lam.detach().reshape(8, 8))
plt.colorbar(label="log penalty of each pixel")
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "digits.png")
