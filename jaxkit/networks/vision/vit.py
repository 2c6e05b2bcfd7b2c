"""A small vision transformer, which takes further tokens (prompts); and attention of tokens to an image (DyTox)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from jaxkit import check
from jaxkit.learner import Network
from jaxkit.networks.adapter import Classifier, compute_dtype, from_flax
from jaxkit.networks.heads import Head, make_head
from jaxkit.networks.layers import images

POOLS = ("class_token", "mean")
"""Which outputs of the last block are the features of an image: the class token's, or the mean over the patches."""

READ = (*POOLS, "prompts", "tokens")
"""What one call may ask for instead: the mean over the prompts, or all tokens one by one."""

_small = nn.initializers.normal(0.02)


class MLPBlock(nn.Module):
    """W_2 gelu(W_1 x) with 4 ``width`` hidden units, dropout after each layer."""

    width: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(nn.gelu(nn.Dense(4 * self.width, dtype=self.dtype, name="dense_1")(x)))
        return drop(nn.Dense(self.width, dtype=self.dtype, name="dense_2")(x))


class Block(nn.Module):
    """x <- x + attention(norm(x)); x <- x + mlp(norm(x))  (Dosovitskiy et al. 2021, eq. 2 and 3)."""

    width: int
    heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x, train: bool):
        norm = lambda name: nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name=name)
        attend = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
        x = x + nn.Dropout(self.dropout, deterministic=not train)(attend(norm("norm_1")(x)))
        return x + MLPBlock(self.width, self.dropout, self.dtype, name="mlp")(norm("norm_2")(x), train)


class ViTBackbone(nn.Module):
    """Patches, projected; the class token before them if it is the one that is read; learnt positions; blocks; norm.

    Stage i is block i; the first has what comes before the blocks, the last what comes after them.
    """

    patch: int
    width: int
    depth: int
    heads: int
    pool: str
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x, train: bool, valid=None, start: int = 0, stop: int | None = None, prompts=None, read: str | None = None
    ):
        pool, whole = read or self.pool, stop in (None, self.depth)
        length = 0 if prompts is None else self._length(prompts, x.shape[0], whole and start == 0)
        if pool == "class_token" and self.pool != pool:
            raise check.UsageError("pool='class_token' needs a network made with it; this one has pool='mean'")
        if pool == "prompts" and not length:
            raise check.UsageError("pool='prompts' needs prompts; give prompts=[batch, length, width]")
        x = self._embedded(x, train) if start == 0 else jnp.asarray(x, self.dtype)
        if length:
            x = jnp.concatenate([jnp.asarray(prompts, self.dtype), x], axis=1)
        for i in range(self.depth)[start:stop]:
            x = Block(self.width, self.heads, self.dropout, self.dtype, name=f"block_{i}")(x, train)
        if not whole:
            return x
        x = nn.LayerNorm(dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        first = length + (self.pool == "class_token")
        pooled = {
            "class_token": lambda: x[:, length],
            "mean": lambda: x[:, first:].mean(1, dtype=jnp.float32),
            "prompts": lambda: x[:, :length].mean(1, dtype=jnp.float32),
            "tokens": lambda: x,
        }
        return pooled[pool]()

    def _embedded(self, x, train: bool):
        x = images(x, self.dtype)
        batch, height, width, channels = x.shape
        size = self.patch
        if height % size or width % size:
            raise check.UsageError(f"images of {height}x{width} are not divisible into patches of {size}x{size}")
        x = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
        x = nn.Dense(self.width, dtype=self.dtype, name="patch")(x.reshape(batch, -1, size * size * channels))
        if self.pool == "class_token":
            token = self.param("class_token", _small, (1, 1, self.width), jnp.float32).astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)), x], axis=1)
        if self.has_variable("params", "positions"):
            made = self.get_variable("params", "positions").shape[1]
            if made != x.shape[1]:
                raise check.UsageError(
                    f"images of {height}x{width} are {x.shape[1]} tokens here, the network was made for {made}; "
                    "give images of one size"
                )
        x = x + self.param("positions", _small, (1, *x.shape[1:]), jnp.float32).astype(self.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _length(self, prompts, rows: int, whole: bool) -> int:
        if prompts.ndim != 3 or prompts.shape[0] != rows or prompts.shape[2] != self.width:
            raise check.UsageError(
                f"prompts must be [batch, length, width] = [{rows}, length, {self.width}], got {list(prompts.shape)}"
            )
        if not whole:
            raise check.UsageError("prompts go through all stages of the backbone; this call has only some of them")
        return prompts.shape[1]


class Prompted(NamedTuple):
    """What a vision transformer takes: images [batch, height, width, channels] and prompts [batch, length, width]."""

    x: Array
    prompts: Array


class TokenClassifier(Classifier):
    """A ``Classifier`` of images, alone or ``Prompted``; of ``read="tokens"`` there are no logits."""

    read: str | None = None

    def __call__(self, x, train: bool = False, valid=None, headless: bool = False, **stages: int):
        x, prompts = x if isinstance(x, Prompted) else (x, None)
        features = self.backbone(x, train=train, valid=valid, prompts=prompts, read=self.read, **stages)
        features = features.astype(jnp.float32)
        if headless or stages or features.ndim == 3:
            return {"features": features}
        return {self.output: self.head(features).astype(jnp.float32), "features": features}


class TaskAttention(nn.Module):
    """Each of some tokens t looks at itself and at the tokens x of an image, and at no other t.

    With z = norm([t, x]): t' = t + W_o softmax((W_q z_t)^T (W_k z) / sqrt(d)) W_v z, for each of ``heads`` heads of
    dimension d, and then t' + mlp(norm(t')). The keys and values of the image are computed once for all tokens.

    Source: Douillard et al. 2022, DyTox, section 3.2; class attention of Touvron et al. 2021.
    """

    heads: int

    @nn.compact
    def __call__(self, tokens, x):
        """tokens [tasks, width], x [batch, patches, width] -> [batch, tasks, width]."""
        width = x.shape[-1]
        each = width // self.heads
        dense = lambda name: nn.DenseGeneral((self.heads, each), use_bias=False, name=name)
        norm, query, key, value = nn.LayerNorm(use_fast_variance=False, name="norm_1"), *map(dense, ("q", "k", "v"))
        own, image = norm(tokens), norm(x)
        asked = query(own) / jnp.sqrt(jnp.asarray(each, x.dtype))
        of_own = jnp.einsum("thd,thd->th", asked, key(own))[None, :, :, None]
        of_image = jnp.einsum("thd,bnhd->bthn", asked, key(image))
        of_own = jnp.broadcast_to(of_own, (*of_image.shape[:-1], 1))
        weights = jax.nn.softmax(jnp.concatenate([of_own, of_image], axis=-1))
        mixed = weights[..., :1] * value(own) + jnp.einsum("bthn,bnhd->bthd", weights[..., 1:], value(image))
        tokens = tokens + nn.DenseGeneral(width, axis=(-2, -1), name="out")(mixed)
        norm = nn.LayerNorm(use_fast_variance=False, name="norm_2")
        return tokens + MLPBlock(width, 0.0, jnp.float32, name="mlp")(norm(tokens), False)


def vit(
    num_classes: int,
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    head: str | Head = "linear",
    *,
    pool: str = "class_token",
    precision: str = "float32",
    dropout: float = 0.0,
) -> Network:
    """A vision transformer for [batch, height, width, channels]: patches of ``patch`` x ``patch`` pixels as tokens.

    With N tokens (one more than patches for the class token) it has p^2 c w + w + N w (+ w) parameters before the
    blocks, 12 w^2 + 13 w in each block, 2 w after them, and the head's.

    ``apply`` takes two keywords more. ``prompts`` [batch, length, width] are tokens put before the others after the
    embedding; they have no position. ``pool`` asks for other features in this call: ``prompts``, the mean over the
    outputs of the prompts; ``mean``; or ``tokens``, all outputs [batch, tokens, width] in the order prompts, class
    token, patches, without logits. Prompts never count in ``mean``.

    Args:
      num_classes: the number of outputs.
      patch: side of a patch in pixels; it divides the image's sides (4 or 7 of 28, 2 of 8).
      width: of a token.
      depth: blocks, which are the stages of ``part_of``.
      heads: of the attention; they divide ``width``.
      head: ``linear``, ``cosine``, or a function of the number of classes.
      pool: what the features are: ``class_token``, or the ``mean`` over the patches (then there is no class token).
      precision: ``float32`` or ``bfloat16`` (of the computation; parameters stay float32).
      dropout: probability with which a unit is dropped in training, after the embedding, the attention and each layer
        of the MLP.

    Raises:
      UsageError: a name or number out of range, heads that do not divide the width; x not of four axes, or not
        divisible into patches; prompts of another shape, or given to some of the stages only.

    Source: Dosovitskiy et al. 2021, An image is worth 16x16 words, ICLR, eq. 1 to 4.
    """
    patch, width, depth = check.count("patch", patch), check.count("width", width), check.count("depth", depth)
    heads, pool = check.count("heads", heads), check.choose("pool", pool, POOLS)
    check.number("dropout", dropout, 0.0, 0.99)
    if width % heads:
        raise check.UsageError(f"heads must divide the width {width}, got {heads}")
    backbone = ViTBackbone(patch, width, depth, heads, pool, float(dropout), compute_dtype(precision))
    output = make_head(head, num_classes)
    reading = {read: from_flax(TokenClassifier(backbone, output, read=read), stages=depth) for read in (None, *READ)}

    def apply(params, variables, x, *, prompts=None, pool: str | None = None, **options: Any):
        network = reading[None if pool is None else check.choose("pool", pool, READ)]
        return network.apply(params, variables, x if prompts is None else Prompted(x, prompts), **options)

    return reading[None]._replace(apply=apply)
