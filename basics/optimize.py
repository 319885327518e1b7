"""Minimising smooth functions theta (P,) -> (value, gradient (P,)): freely, under a constraint, and stopped early.

theta = minimize_lbfgs(objective, start)
theta, rounds = minimize_constrained(objective, constraint, theta, unit=0.8)      so that constraint(theta) <= 0
"""

import numpy as np


def add_l2(theta, value, gradient, l2):
    """A linear classifier's penalty l2 / 2 |w|^2, which leaves the last entry of theta, the bias, alone."""
    weights = np.append(theta[:-1], 0)
    return value + l2 / 2 * weights @ weights, gradient + l2 * weights


def minimize_lbfgs(objective, start, iterations=1000):
    """The minimum of a smooth function by L-BFGS, which needs no rate; the minimum of all where it is convex."""
    from scipy.optimize import minimize  # here, since a script's --help need not wait for it

    limits = {"maxiter": iterations, "maxfun": 2 * iterations, "ftol": 1e-9, "gtol": 1e-5}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=limits).x


def minimize_constrained(objective, constraint, start, unit, tolerance=1e-3, rounds=40):
    """Minimise objective(theta) so that constraint(theta) <= tolerance x unit, from a `start` that meets it.

    An augmented Lagrangian (Nocedal & Wright 2006, Alg. 17.4): each round minimises, from where the last one ended,
    objective + (max(0, m + b c)^2 - m^2) / 2b, where c is the constraint, m the multiplier and b the weight, and then
    sets m to max(0, m + b c). b begins at 1 / unit and grows fourfold where a round has not brought c to a quarter.
    Returns the best theta that meets the constraint, the start at worst, and a row per round: its "theta",
    "constraint", "multiplier" and "weight".
    """
    theta, multiplier, weight, violation, history = start, 0.0, 1 / unit, np.inf, []
    best, least = start, objective(start)[0]

    def lagrangian(theta):
        value, gradient = objective(theta)
        excess, slope = constraint(theta)
        push = max(0.0, multiplier + weight * excess)
        return value + (push**2 - multiplier**2) / (2 * weight), gradient + push * slope

    for _ in range(rounds):
        theta = minimize_lbfgs(lagrangian, theta)
        excess, value = constraint(theta)[0], objective(theta)[0]
        if excess <= tolerance * unit and value < least:
            best, least = theta, value
        slack = max(excess, -multiplier / weight)  # 0 where c = 0, or m = 0 and c < 0
        multiplier = max(0.0, multiplier + weight * excess)
        history.append({"theta": theta, "constraint": excess, "multiplier": multiplier, "weight": weight})
        if abs(slack) <= tolerance * unit:
            break
        weight *= 4 if abs(slack) > violation / 4 else 1
        violation = abs(slack)
    return best, history


def stop_early(objective, held_out, start, rate, patience=200, steps=20000):
    """theta of gradient descent at the step where held_out(theta), a number, is least, and that step.

    `patience` steps without a lower one end it.
    """
    theta, best, least, at = start, start, np.inf, 0
    for step in range(steps + 1):
        if (loss := held_out(theta)) < least:
            best, least, at = theta, loss, step
        if step - at >= patience:
            break
        theta = theta - rate * objective(theta)[1]
    return best, at
