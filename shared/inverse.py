"""H^-1 v from products with H alone: what the methods for an inner problem at its minimum need."""

from __future__ import annotations

from collections.abc import Callable

from shared import vectors
from shared.vectors import Rate, Vector


def neumann(hessian: Callable[[Vector], Vector], v: Vector, k: int, rate: Rate) -> Vector:
    """The sum over j = 0..k of D (I - H D)^j v, D = diag(rate): k products with H.

    Converges if the norm of I - H D is below 1.
    """
    term, total = vectors.clone(v), vectors.clone(v)
    for _ in range(k):
        if isinstance(rate, float):
            vectors.add_(term, hessian(term), -rate)
        else:
            vectors.add_(term, hessian(vectors.scaled(term, rate)), -1.0)
        vectors.add_(total, term)
    return vectors.scale_(total, rate)


def conjugate_gradient(
    hessian: Callable[[Vector], Vector],
    v: Vector,
    k: int,
    damping: float = 0.0,
    reorthogonalise: bool = True,
) -> Vector:
    """x with (H + damping) x = v after k products with H, from x = 0 (Hestenes and Stiefel 1952).

    Raises ArithmeticError where H has a direction of negative curvature.
    """
    x, r, p = vectors.zeros_like(v), vectors.clone(v), vectors.clone(v)
    start = rr = vectors.dot(r, r)
    residuals: list[Vector] = []
    for i in range(k):
        if rr <= 1e-30 * start:  # solved to the last digit; the next direction would be noise
            break
        hp = hessian(p)
        vectors.add_(hp, p, damping)
        curvature = vectors.dot(p, hp)
        if not curvature > 0:
            raise ArithmeticError(
                f"the inner Hessian has curvature {curvature:.3g} along a search direction: theta "
                "is not at a minimum of the inner loss; train it further, or pass "
                "ConjugateGradient(damping=...) larger than the most negative eigenvalue"
            )
        vectors.add_(x, p, rr / curvature)
        if i == k - 1:
            break  # nobody needs the next direction
        if reorthogonalise:
            residuals.append(vectors.scaled(r, rr**-0.5))
        vectors.add_(r, hp, -rr / curvature)
        del hp
        for q in residuals:
            vectors.add_(r, q, -vectors.dot(r, q))
        new = vectors.dot(r, r)
        vectors.scale_(p, new / rr)
        vectors.add_(p, r)
        rr = new
    return x
