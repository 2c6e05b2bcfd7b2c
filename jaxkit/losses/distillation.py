"""Losses of a student against a teacher, per row: [batch]. No gradient goes to the teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkit import check
from jaxkit.losses.vectors import normalize


def kd(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    *,
    temperature: float | int | Array = 2.0,
) -> Float[Array, "*batch"]:
    """T^2 KL(softmax(z_teacher / T) || softmax(z_student / T)).

    T^2 keeps the size of the gradient as T grows; KL differs from the cross-entropy of Hinton et al. 2015 by the
    teacher's entropy, a constant, so that a student equal to its teacher has loss 0.

    Raises:
      UsageError: a temperature that is not positive.
    """
    check.positive("temperature", temperature)
    teacher = jax.lax.stop_gradient(teacher_logits) / temperature
    log_q, log_p = jax.nn.log_softmax(student_logits / temperature), jax.nn.log_softmax(teacher)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def feature_distillation(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *features"], *, unit: bool = False
) -> Float[Array, " batch"]:
    """|s - t|^2, with ``unit`` of the vectors divided by their norms, where it is 2 - 2 cos(s, t). (Romero et al.
    2015, eq. 3.)
    """
    s, t = student.reshape(len(student), -1), jax.lax.stop_gradient(teacher).reshape(len(teacher), -1)
    if unit:
        s, t = normalize(s), normalize(t)
    return jnp.square(s - t).sum(-1)


def cosine_distillation(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *features"]
) -> Float[Array, " batch"]:
    """1 - cos(s, t) (the less-forget constraint of Hou et al. 2019, eq. 6); 1 where a vector is 0."""
    s, t = student.reshape(len(student), -1), jax.lax.stop_gradient(teacher).reshape(len(teacher), -1)
    return 1.0 - jnp.sum(normalize(s) * normalize(t), axis=-1)
