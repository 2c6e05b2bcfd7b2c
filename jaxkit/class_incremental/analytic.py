"""Pre-trained features, no exemplars, no descent: SimpleCIL, RanPAC, ACIL.

The network is used as it is initialised (``jaxkit.learner.starting_from`` gives it pre-trained weights; for features
already extracted it is ``mlp(classes, hidden=())``) and never trained. Each task is one stage of one step on all its
rows. What RanPAC and ACIL keep of earlier rows has a fixed size, and with it they come to the head that ridge
regression on all rows at once would give.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float, Int

from jaxkit import check
from jaxkit.class_incremental.distilled import Scalar
from jaxkit.class_incremental.frozen import (
    BLOCK,
    closed_form,
    hidden_of,
    in_blocks,
    random_relu,
    row_mean,
    squared_error,
    targets,
    with_head,
    with_kernel,
)
from jaxkit.class_incremental.phases import Settings, make_run
from jaxkit.class_incremental.task import grouped, held_back
from jaxkit.learner import Batch, Metrics, Network, Plan, TrainState
from jaxkit.losses.vectors import normalize

RIDGES = tuple(10.0**k for k in range(-8, 9))
"""The values of lambda that RanPAC tries, as in its released code."""

STEP = 32
"""Rows by which the recursion of ACIL advances: the fewer, the less rounding, at the same number of operations."""

HELD = 0.2
"""The share of a task's rows by which RanPAC chooses among them."""


def simplecil(network: Network, optimizer: optax.GradientTransformation, **settings: Unpack[Settings]) -> Plan:
    """z_c = cos(phi, p_c), the prototype p_c = mean of phi over the rows of class c; the loss is 1 - mean_i z_{y_i}.

    (``logits_ncm`` has the mean of phi / |phi| in place of p_c.)

    Args:
      network: the embedding phi, used as it is initialised; only its ``features`` count.
      optimizer: taken as by every method, and not used.
      settings: see ``Settings``; only the stream counts.

    Source: Zhou et al. 2023, Revisiting class-incremental learning with pre-trained models.
    """
    run = make_run(**{**settings, "memory": None})
    cosine = with_head(
        network,
        lambda fixed, features: features,
        lambda key, features: (),
        lambda features, kernel: normalize(features) @ normalize(kernel, axis=0),
    )

    def solve(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        kernel = state.params["head"]["kernel"]

        def add(sums: tuple[Array, Array], part: Batch) -> tuple[Array, Array]:
            labels = targets(part, kernel.shape[1])
            return sums[0] + hidden_of(cosine, state, part).T @ labels, sums[1] + labels.sum(0)

        total, counts = in_blocks(add, (jnp.zeros_like(kernel), jnp.zeros(kernel.shape[1])), batch)
        state = with_kernel(state, jnp.where(counts > 0, total / jnp.maximum(counts, 1.0), kernel))

        def away(part: Batch) -> Array:
            return 1.0 - (hidden_of(cosine, state, part, "logits") * targets(part, kernel.shape[1])).sum(-1)

        return state, {"loss": row_mean(away, batch)}

    return closed_form(cosine, run, solve, lambda params, variables: ())


class Sums(NamedTuple):
    """``Task.own`` of RanPAC: what is kept of all rows h, y seen so far.

    Attributes:
      gram: G = sum_i h_i h_i^T, [hidden, hidden].
      cross: C = sum_i h_i y_i^T, [hidden, classes].
    """

    gram: Array
    cross: Array


def ridge_solution(
    gram: Float[Array, "hidden hidden"], cross: Float[Array, "hidden classes"], ridge: Scalar
) -> Float[Array, "hidden classes"]:
    """(G + ridge I)^-1 C by Cholesky; NaN where G + ridge I is not positive definite in this precision."""
    return cho_solve(cho_factor(gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)), cross)


def last_of_each_class(
    labels: Int[Array, " rows"], valid: Bool[Array, " rows"], num_classes: int, share: float
) -> Bool[Array, " rows"]:
    """The last rows of each class, as many as ``held_back`` says."""
    groups = grouped(jnp.where(valid, labels, num_classes), num_classes + 1)
    of_row = jnp.where(valid, labels, num_classes)[groups.order]
    rank = (
        jnp.zeros_like(groups.order)
        .at[groups.order]
        .set(jnp.arange(len(labels), dtype=jnp.int32) - groups.starts[of_row])
    )
    first = groups.counts - held_back(groups.counts, share)
    return valid & (rank >= first[labels])


def rows_hidden(network: Network, state: TrainState, batch: Batch, width: int) -> Float[Array, "rows hidden"]:
    """The hidden features of all rows, computed block by block."""
    rows = len(batch["y"])
    size = min(BLOCK, rows)

    def add(carry: tuple[Array, Array], part: Batch) -> tuple[Array, Array]:
        at, done = carry
        return at + size, jax.lax.dynamic_update_slice(done, hidden_of(network, state, part), (at, 0))

    start = jnp.zeros((), jnp.int32), jnp.zeros((-(-rows // size) * size, width), jnp.float32)
    return in_blocks(add, start, batch)[1][:rows]


def errors_by_rows(
    h: Float[Array, "rows hidden"],
    y: Float[Array, "rows classes"],
    held: Bool[Array, " rows"],
    ridges: Float[Array, " ridges"],
) -> Float[Array, " ridges"]:
    """sum over the rows held of |z - y|^2 for each lambda, z by ridge regression on the other rows, H and Y:
    z = h H^T (H H^T + lambda I)^-1 Y, which is h (H^T H + lambda I)^-1 H^T Y. A row of zeros changes nothing.

    It costs (rows)^3 / 3 for each lambda, where the inverse of hidden x hidden costs (hidden)^3 / 3.
    """
    inner = h @ h.T
    fitted, known = jnp.where(held[:, None] | held, 0.0, inner), jnp.where(held[:, None], 0.0, y)

    def error(ridge: Array) -> Array:
        outputs = inner @ ridge_solution(fitted, known, ridge)
        return jnp.where(held, jnp.square(outputs - y).sum(-1), 0.0).sum()

    return jax.lax.map(error, ridges)


def ranpac(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    width: int = 10000,
    ridges: tuple[float, ...] = RIDGES,
    **settings: Unpack[Settings],
) -> Plan:
    """z = h K with h = relu(phi W), W random, and K = (G + lambda I)^-1 C of all rows so far, by ``Sums``.

    lambda is chosen anew at each task, from its rows alone: of the heads fitted to four fifths of them, the one with
    the smallest squared error on the last fifth of each class. Of ``ridges``, those below eps trace(G) take no part;
    in float32 they cannot be told from 0. The metric ``ridge`` says which it was.

    Args:
      network: the embedding phi, used as it is initialised; only its ``features`` count.
      optimizer: taken as by every method, and not used.
      width: M, the random features; 10,000 in the paper. The state has M^2 numbers, a step costs M^3 / 3,
        and n^3 / 3 for each of ``ridges`` with n the smaller of M and the task's rows.
      ridges: the values of lambda.
      settings: see ``Settings``; only the stream counts.

    Source: McDonnell et al. 2023, RanPAC: random projections and pre-trained models for continual learning, NeurIPS,
    algorithm 1, without its first phase (adapters tuned on the first task).
    """
    width, run = check.count("width", width), make_run(**{**settings, "memory": None})
    if not ridges:
        raise check.UsageError("ridges must hold a value or more, for example (1.0, 10.0, 100.0)")
    tried = jnp.asarray([check.positive("ridges", ridge) for ridge in ridges], jnp.float32)
    wide = random_relu(network, width, jax.random.normal)
    classes = run.stream.num_classes

    def by_rows(state: TrainState, batch: Batch) -> tuple[Sums, Array]:
        """The sums with these rows, and the error of each lambda; for fewer rows than features."""
        h, y, own = rows_hidden(wide, state, batch, width), targets(batch, classes), state.extra.own
        return Sums(own.gram + h.T @ h, own.cross + h.T @ y), errors_by_rows(h, y, batch["held"], tried)

    def by_features(state: TrainState, batch: Batch) -> tuple[Sums, Array]:
        """The same for more rows than features, block by block."""
        nothing = jax.tree.map(jnp.zeros_like, state.extra.own)

        def add(sums: tuple[Sums, Sums], part: Batch) -> tuple[Sums, Sums]:
            h, y = hidden_of(wide, state, part), targets(part, classes)

            def more(old: Sums, mask: Array) -> Sums:
                mine = jnp.where(mask[:, None], h, 0.0)
                return Sums(old.gram + mine.T @ mine, old.cross + mine.T @ y)

            return more(sums[0], ~part["held"]), more(sums[1], part["held"])

        fitted, others = in_blocks(add, (nothing, nothing), batch)
        own = jax.tree.map(lambda *leaves: sum(leaves), state.extra.own, fitted, others)
        heads = jax.lax.map(lambda ridge: ridge_solution(fitted.gram, fitted.cross, ridge), tried)

        def misfit(errors: Array, part: Batch) -> Array:
            outputs = jnp.einsum("bm,rmc->rbc", hidden_of(wide, state, part), heads)
            error = jnp.square(outputs - targets(part, classes)).sum(-1)
            return errors + jnp.where(part["held"], error, 0.0).sum(-1)

        return own, in_blocks(misfit, jnp.zeros(tried.shape), batch)

    def solve(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        held = last_of_each_class(batch["y"], batch["valid"], classes, HELD)
        choose = by_rows if len(held) <= width else by_features
        own, errors = choose(state, {**batch, "held": held})
        able = jnp.isfinite(errors) & (tried >= jnp.finfo(jnp.float32).eps * jnp.trace(own.gram))
        ridge = jnp.where(able.any(), tried[jnp.argmin(jnp.where(able, errors, jnp.inf))], tried.max())
        state = with_kernel(state, ridge_solution(own.gram, own.cross, ridge))
        state = state._replace(extra=state.extra._replace(own=own))
        return state, {"loss": squared_error(wide, state, batch), "ridge": ridge}

    empty = lambda params, variables: Sums(jnp.zeros((width, width)), jnp.zeros((width, classes)))
    return closed_form(wide, run, solve, empty)


def recursion(
    root: Float[Array, "hidden hidden"],
    kernel: Float[Array, "hidden classes"],
    h: Float[Array, "rows hidden"],
    y: Float[Array, "rows classes"],
) -> tuple[Float[Array, "hidden hidden"], Float[Array, "hidden classes"]]:
    """Recursive least squares: (S, K) with these rows too, where R = S S^T = (sum_i h_i h_i^T + ridge I)^-1.

        R <- R - R H^T (I + H R H^T)^-1 H R,    K <- K + R H^T (Y - H K)

    (Zhuang et al. 2022, eq. 9 and 10), which is the Sherman-Morrison-Woodbury identity: after any split of the rows
    into blocks K = (sum_i h_i h_i^T + ridge I)^-1 sum_i h_i y_i^T, the ridge regression on all of them. R itself loses
    its definiteness to rounding in float32, so its root S goes through the recursion: with V = H S and L L^T = I +
    V V^T, by the QR decomposition of (I, V)^T, S <- S (I - V^T L^-T (L + I)^-1 V). (Andrews 1968, A square root
    formulation of the Kalman covariance equations; one multiplies out that S S^T follows the first line.) A row of
    zeros changes nothing.
    """
    v = h @ root
    identity = jnp.eye(len(h), dtype=h.dtype)
    upper = jnp.linalg.qr(jnp.concatenate([identity, v.T]), mode="r")
    lower = (jnp.sign(jnp.diagonal(upper))[:, None] * upper).T
    gain = solve_triangular(lower, v @ root.T, lower=True).T  # S V^T L^-T
    kernel = kernel + gain @ solve_triangular(lower, y - h @ kernel, lower=True)
    return root - gain @ solve_triangular(lower + identity, v, lower=True), kernel


def acil(
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    width: int = 8192,
    ridge: Scalar = 0.1,
    **settings: Unpack[Settings],
) -> Plan:
    """z = h K with h = relu(phi W), W random, and K by ``recursion`` from K = 0 and R = I / ridge: the ridge regression
    on all rows so far, of which R alone is kept.

    Args:
      network: the embedding phi, used as it is initialised; only its ``features`` count.
      optimizer: taken as by every method, and not used.
      width: the random features, 8192 for CIFAR-100 and 16,384 for ImageNet in the released code. W is uniform in
        +-1 / sqrt(features), as there.
      ridge: gamma, 0.1 there. May be traced.
      settings: see ``Settings``; only the stream counts.

    Source: Zhuang et al. 2022, ACIL: analytic class-incremental learning with absolute memorization and privacy
    protection, NeurIPS; without the training of the embedding on the first task.
    """
    width, run = check.count("width", width), make_run(**{**settings, "memory": None})
    check.positive("ridge", ridge)

    def draw(key: Array, shape: tuple[int, int]) -> Array:
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / jnp.sqrt(jnp.float32(shape[0]))

    wide = random_relu(network, width, draw)

    def solve(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def add(carry: tuple[Array, Array], part: Batch) -> tuple[Array, Array]:
            return recursion(*carry, hidden_of(wide, state, part), targets(part, run.stream.num_classes))

        root, kernel = in_blocks(add, (state.extra.own, state.params["head"]["kernel"]), batch, STEP)
        state = with_kernel(state, kernel)
        state = state._replace(extra=state.extra._replace(own=root))
        return state, {"loss": squared_error(wide, state, batch)}

    nothing = lambda params, variables: jnp.eye(width) / jnp.sqrt(jnp.asarray(ridge, jnp.float32))
    return closed_form(wide, run, solve, nothing)
