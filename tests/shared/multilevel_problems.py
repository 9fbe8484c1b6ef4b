"""The three-level graphs of two papers, small enough for autograd through everything."""

import torch
from torch.nn import functional as F

from shared.multilevel import Level


def leaf(g, *shape, scale=1.0):
    return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).requires_grad_()


def step(loss, theta, lr):
    """An inner step as a function: new tensors that remember where they come from."""
    g = torch.autograd.grad(loss, theta, create_graph=True)
    return [p - lr * d for p, d in zip(theta, g)]


class TapWeight:
    """Pretrain theta_e and three heads under softmax(alpha); tune phi, w near theta_e; validate."""

    gamma, lr1, lr2 = 0.3, 0.2, 0.1

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.encoder, self.heads = leaf(g, 4, 6), [leaf(g, 6, 2) for _ in range(3)]
        self.phi, self.w = leaf(g, 4, 6), leaf(g, 6, 3)
        self.alpha = leaf(g, 3)
        self.x, self.targets = (
            torch.randn(3, 9, 4, generator=g, dtype=torch.float64),
            torch.randn(3, 9, 2, generator=g, dtype=torch.float64),
        )
        self.y = torch.randint(0, 3, (2, 9), generator=g)

    def objectives(self, encoder, heads):
        return [
            F.mse_loss(torch.tanh(self.x[0] @ encoder) @ h, t) for h, t in zip(heads, self.targets)
        ]

    def pretrain(self, encoder, *heads):
        losses = self.objectives(encoder, heads)
        return (torch.softmax(self.alpha, 0) * torch.stack(losses)).sum()

    def task(self, phi, w, encoder):
        prox = (phi - encoder).pow(2).sum()
        return F.cross_entropy(torch.tanh(self.x[1] @ phi) @ w, self.y[0]) + self.gamma * prox

    def validate(self, phi, w):
        return F.cross_entropy(torch.tanh(self.x[2] @ phi) @ w, self.y[1])

    def levels(self, methods, lr1=lr1, lr2=lr2):
        theta, phi = [self.encoder, *self.heads], [self.phi, self.w]
        return [
            Level(lambda: self.pretrain(*theta), theta, lr1, methods[0]),
            Level(lambda: self.task(*phi, self.encoder), phi, lr2, methods[1]),
        ]

    def exact(self):
        encoder, *_ = step(
            self.pretrain(self.encoder, *self.heads), [self.encoder, *self.heads], self.lr1
        )
        phi, w = step(self.task(self.phi, self.w, encoder), [self.phi, self.w], self.lr2)
        return torch.autograd.grad(self.validate(phi, w), [self.alpha])


class MLOMAE:
    """Encoder and decoder under patch scores s = T(x); head on the encoder; level 3 uses both."""

    lr1, lr2 = 0.2, 0.3

    def __init__(self):
        g = torch.Generator().manual_seed(1)
        self.e, self.d, self.c = leaf(g, 5, 6, scale=0.5), leaf(g, 6, 5, scale=0.5), leaf(g, 6, 3)
        self.t = [leaf(g, 5, 4), leaf(g, 4, 1)]
        self.x, self.y = (
            torch.randn(3, 10, 5, generator=g, dtype=torch.float64),
            torch.randint(0, 3, (2, 10), generator=g),
        )

    def reconstruct(self, e, d):
        scores = torch.sigmoid(torch.tanh(self.x[0] @ self.t[0]) @ self.t[1])[:, 0]
        errors = (torch.tanh(self.x[0] @ e) @ d - self.x[0]).pow(2).mean(1)
        return (scores * errors).mean()

    def head(self, c, e, which=0):
        return F.cross_entropy(torch.tanh(self.x[1 + which] @ e) @ c, self.y[which])

    def levels(self, method):
        return [
            Level(lambda: self.reconstruct(self.e, self.d), [self.e, self.d], self.lr1, method),
            Level(lambda: self.head(self.c, self.e), [self.c], self.lr2, method),
        ]

    def exact(self):
        e, _d = step(self.reconstruct(self.e, self.d), [self.e, self.d], self.lr1)
        (c,) = step(self.head(self.c, e), [self.c], self.lr2)
        return torch.autograd.grad(self.head(c, e, 1), self.t)
