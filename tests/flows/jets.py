"""Polynomials cut at a total degree, in exact fractions: fields, maps and flows to any order without trees.

A polynomial is a mapping from exponents to coefficients; a field is a list of them, one a component.
"""

import itertools
import random
from collections import defaultdict
from fractions import Fraction


def monomials(variables, degree):
    """Exponents of total degree at most ``degree``."""
    return [e for e in itertools.product(range(degree + 1), repeat=variables) if sum(e) <= degree]


def random_polynomial(rng, variables, degree):
    """Small whole coefficients, none of them zero."""
    return {e: Fraction(rng.choice((-3, -2, -1, 1, 2, 3))) for e in monomials(variables, degree)}


def random_field(seed, variables, degree):
    rng = random.Random(seed)
    return [random_polynomial(rng, variables, degree) for _ in range(variables)]


def add(a, b, scale=1):
    total = defaultdict(Fraction, a)
    for e, c in b.items():
        total[e] += scale * c
    return {e: c for e, c in total.items() if c}


def multiply(a, b, degree):
    total = defaultdict(Fraction)
    for e, c in a.items():
        room = degree - sum(e)
        for k, d in b.items():
            if sum(k) <= room:
                total[tuple(map(sum, zip(e, k, strict=True)))] += c * d
    return {e: c for e, c in total.items() if c}


def partial(a, i):
    return {(*e[:i], e[i] - 1, *e[i + 1 :]): c * e[i] for e, c in a.items() if e[i]}


def cut(a, degree):
    return {e: c for e, c in a.items() if sum(e) <= degree}


def lie(field, along, degree):
    """field'(y) along(y): differentiated in as many variables as ``along`` has components."""
    result = []
    for component in field:
        total = {}
        for i, a in enumerate(along):
            total = add(total, multiply(partial(component, i), a, degree))
        result.append(total)
    return result


def compose(field, state, degree):
    """field(state) for a state without constant terms: polynomials in as many variables as state's have."""
    one = {(0,) * len(next(iter(state[0]))): Fraction(1)}
    powers = {(0,) * len(state): one}

    def power(e):
        if e not in powers:
            i = next(i for i, n in enumerate(e) if n)
            powers[e] = multiply(power((*e[:i], e[i] - 1, *e[i + 1 :])), state[i], degree)
        return powers[e]

    result = []
    for component in field:
        total = {}
        for e, c in component.items():
            total = add(total, power(e), c)
        result.append(total)
    return result


def variables(dimension):
    """y as polynomials in (y, h)."""
    return [{tuple(int(i == j) for j in range(dimension + 1)): Fraction(1)} for i in range(dimension)]


def times_h(state, times=1):
    return [{(*e[:-1], e[-1] + times): c for e, c in a.items()} for a in state]


def total(*scaled):
    """Σ scale · state, for pairs (scale, state)."""
    result = [{} for _ in scaled[0][1]]
    for scale, state in scaled:
        result = [add(a, b, scale) for a, b in zip(result, state, strict=True)]
    return result


def powers_of_h(state, degree):
    """[d_0, d_1, …]: polynomials in y alone."""
    return [[{e[:-1]: c for e, c in a.items() if e[-1] == j} for a in state] for j in range(degree + 1)]


def lie_recursion(terms, order):
    """F_1 … F_order, exact at y = 0, of the map y + Σ_j h^j d_j(y), d_j = terms[j] (terms[0] is not read).

    F_j = d_j − Σ_{i=2..j} (1/i!) S_{i,j}, S_{i,j} = Σ over k_1 + … + k_i = j of D_{k_1} … D_{k_{i−1}} F_{k_i}, by
    S_{i,j} = Σ_k D_k S_{i−1,j−k}. A term with h^j is needed to degree order − j: each derivative takes one.
    """
    sums = {}  # S_{i,j}; S_{1,j} is F_j
    for j in range(1, order + 1):
        degree = order - j
        sums[1, j] = [cut(a, degree) for a in terms[j]]
        factorial = 1
        for i in range(2, j + 1):
            factorial *= i
            # D_k S_{i−1,j−k} with k ≤ j − i + 1 < j: known already
            parts = [(1, lie(sums[i - 1, j - k], sums[1, k], degree)) for k in range(1, j - i + 2)]
            sums[i, j] = total(*parts)
            sums[1, j] = total((1, sums[1, j]), (Fraction(-1, factorial), sums[i, j]))
    return [sums[1, j] for j in range(1, order + 1)]


def differential(whole, parts, degree):
    """F(τ) of a field by parts (colour → polynomials in y), cut at a degree."""
    directions = [differential(child, parts, degree) for child in whole.children]

    def contract(components, left):
        if not left:
            return [cut(a, degree) for a in components]
        result = [{} for _ in components]
        for i, factor in enumerate(left[0]):
            if factor:
                inner = contract([partial(a, i) for a in components], left[1:])
                result = [add(a, multiply(factor, b, degree)) for a, b in zip(result, inner, strict=True)]
        return result

    return contract(parts[whole.colour], directions)


def compositions(n):
    """The ways to write n as a sum of positive numbers in order."""
    return [(n,)] + [(k, *rest) for k in range(1, n) for rest in compositions(n - k)]
