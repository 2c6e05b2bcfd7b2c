"""Does a training run mapped over seeds by ``jax.vmap`` hang on a CPU with few cores?

It does, now and then: with JAX 0.10.2 on two cores, one of six runs mapped by ``vmap`` stood idle until its limit of
120 s (``results/vmapped_training-cpu.json``), none of six mapped by ``lax.map`` did
(other work ran on the machine at times). The program is PPO on CartPole,
compiled ahead and called once; each run has a process of its own with a time limit:
``python -m experiments.benchmarks.vmapped_training --repeats 10``.

``fit(seeds=...)`` uses ``lax.map`` on a CPU: it costs nothing there, and its seeds are bit-equal to single runs.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.benchmarks._timing import write

ENVIRONMENTS, LENGTH, EPOCHS, MINIBATCHES = 4, 128, 4, 4
GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2


@dataclasses.dataclass(frozen=True)
class Config:
    """Options.

    Attributes:
      out: folder for the result.
      seeds: how many seeds are mapped; several are tried in turn.
      steps: environment steps of a seed.
      repeats: processes for each number of seeds and each way of mapping.
      limit_s: seconds after which a process counts as hung.
      worker: used by the program itself: be one process, "vmap" or "map", of the first number of seeds.
    """

    out: Path | None = None
    seeds: tuple[int, ...] = (8, 16)
    steps: int = 40_000
    repeats: int = 5
    limit_s: float = 180.0
    worker: str | None = None


class Pole(NamedTuple):
    """CartPole's state: position and angle with their velocities, and the steps of the episode."""

    x: jax.Array
    velocity: jax.Array
    angle: jax.Array
    spin: jax.Array
    time: jax.Array


def observe(pole: Pole) -> jax.Array:
    return jnp.stack(pole[:4])


def reset(key: jax.Array) -> Pole:
    return Pole(*jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.int32(0))


def step(key: jax.Array, pole: Pole, action: jax.Array) -> tuple[Pole, jax.Array]:
    """One step of Barto, Sutton and Anderson's cart and pole, started anew after its end: (state, whether it ended)."""
    sine, cosine = jnp.sin(pole.angle), jnp.cos(pole.angle)
    push = (jnp.where(action == 1, 10.0, -10.0) + 0.05 * pole.spin**2 * sine) / 1.1
    turn = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * cosine**2 / 1.1))
    drift = push - 0.05 * turn * cosine / 1.1
    moved = Pole(
        pole.x + 0.02 * pole.velocity,
        pole.velocity + 0.02 * drift,
        pole.angle + 0.02 * pole.spin,
        pole.spin + 0.02 * turn,
        pole.time + 1,
    )
    ended = (jnp.abs(moved.x) > 2.4) | (jnp.abs(moved.angle) > 0.2095) | (moved.time >= 500)
    return jax.tree.map(lambda new, old: jnp.where(ended, new, old), reset(key), moved), ended


def network(key: jax.Array, outputs: int, scale: float) -> list[tuple[jax.Array, jax.Array]]:
    sizes, gains = (4, 64, 64, outputs), (2**0.5, 2**0.5, scale)
    make = jax.nn.initializers.orthogonal
    keys = jax.random.split(key, 3)
    return [(make(g)(k, (a, b)), jnp.zeros(b)) for k, g, a, b in zip(keys, gains, sizes[:-1], sizes[1:], strict=True)]


def forward(layers: list, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def train(key: jax.Array, steps: int) -> jax.Array:
    """Proximal policy optimisation for ``steps`` environment steps: the mean length of the episodes of the last
    rollouts."""
    updates = steps // (ENVIRONMENTS * LENGTH)
    rate = optax.linear_schedule(2.5e-4, 0.0, updates * EPOCHS * MINIBATCHES)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))
    actor_key, critic_key, reset_key, key = jax.random.split(key, 4)
    params = {"actor": network(actor_key, 2, 0.01), "critic": network(critic_key, 1, 1.0)}
    value_of = lambda params, x: forward(params["critic"], x)[..., 0]

    def act(carry: Any, key: jax.Array):
        params, poles = carry
        action_key, step_key = jax.random.split(key)
        x = jax.vmap(observe)(poles)
        logits = jax.nn.log_softmax(forward(params["actor"], x))
        action = jax.random.categorical(action_key, logits)
        chosen = jnp.take_along_axis(logits, action[:, None], 1)[:, 0]
        poles, ended = jax.vmap(step)(jax.random.split(step_key, ENVIRONMENTS), poles, action)
        return (params, poles), {"x": x, "action": action, "log": chosen, "value": value_of(params, x), "ended": ended}

    def loss(params: Any, batch: dict) -> jax.Array:
        logits = jax.nn.log_softmax(forward(params["actor"], batch["x"]))
        chosen = jnp.take_along_axis(logits, batch["action"][:, None], 1)[:, 0]
        advantage = (batch["advantage"] - batch["advantage"].mean()) / (batch["advantage"].std() + 1e-8)
        ratio = jnp.exp(chosen - batch["log"])
        policy = -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage).mean()
        value = 0.5 * jnp.square(value_of(params, batch["x"]) - batch["target"]).mean()
        return policy + 0.5 * value + 0.01 * (jnp.exp(logits) * logits).sum(1).mean()

    def advantages(batch: dict, last: jax.Array) -> jax.Array:
        def back(carry, now):
            advantage, following = carry
            going = 1.0 - now["ended"]
            delta = 1.0 + GAMMA * following * going - now["value"]
            advantage = delta + GAMMA * LAMBDA * going * advantage
            return (advantage, now["value"]), advantage

        return jax.lax.scan(back, (jnp.zeros_like(last), last), batch, reverse=True)[1]

    def minibatch(carry: Any, batch: dict):
        params, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(params, batch), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    def update(carry: Any, key: jax.Array):
        params, moments, poles = carry
        act_key, *epoch_keys = jax.random.split(key, 1 + EPOCHS)
        (_, poles), batch = jax.lax.scan(act, (params, poles), jax.random.split(act_key, LENGTH))
        batch["advantage"] = advantages(batch, value_of(params, jax.vmap(observe)(poles)))
        batch["target"] = batch["advantage"] + batch["value"]
        ended = batch["ended"].sum()
        flat = jax.tree.map(lambda leaf: leaf.reshape(ENVIRONMENTS * LENGTH, *leaf.shape[2:]), batch)

        def epoch(carry: Any, key: jax.Array):
            order = jax.random.permutation(key, ENVIRONMENTS * LENGTH).reshape(MINIBATCHES, -1)
            return jax.lax.scan(minibatch, carry, jax.tree.map(lambda leaf: leaf[order], flat))

        (params, moments), _ = jax.lax.scan(epoch, (params, moments), jnp.stack(epoch_keys))
        return (params, moments, poles), ENVIRONMENTS * LENGTH / jnp.maximum(ended, 1)

    poles = jax.vmap(reset)(jax.random.split(reset_key, ENVIRONMENTS))
    _, lengths = jax.lax.scan(update, (params, optimizer.init(params), poles), jax.random.split(key, updates))
    return lengths[-10:].mean()


def work(config: Config) -> None:
    """One process: compile ahead, call once, say how long each took and what was learned."""
    one = lambda key: train(key, config.steps)
    mapped = jax.vmap(one) if config.worker == "vmap" else lambda keys: jax.lax.map(one, keys)
    keys = jax.random.split(jax.random.key(0), config.seeds[0])
    began = time.perf_counter()
    compiled = jax.jit(mapped).lower(keys).compile()
    ready = time.perf_counter()
    lengths = jax.block_until_ready(compiled(keys))
    done = time.perf_counter()
    print(json.dumps({"compile_s": ready - began, "run_s": done - ready, "length": float(lengths.mean())}))


def attempt(mapping: str, seeds: int, config: Config) -> dict[str, Any]:
    """One process of its own; a process past its limit is killed, and its CPU time tells a hang from slow work."""
    options = ["--worker", mapping, "--seeds", str(seeds), "--steps", str(config.steps)]
    command = [sys.executable, "-m", "experiments.benchmarks.vmapped_training", *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=config.limit_s, check=True)
    except subprocess.TimeoutExpired:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"hung": True, "cpu_share": busy / config.limit_s}
    return {"hung": False, **json.loads(done.stdout)}


def main(config: Config) -> None:
    if config.worker is not None:
        work(config)
        return
    results: dict[str, Any] = {}
    for repeat in range(config.repeats):
        for seeds in config.seeds:
            for mapping in ("vmap", "map"):
                tried = attempt(mapping, seeds, config)
                results.setdefault(f"{mapping} over {seeds} seeds", []).append(tried)
                print(
                    f"{repeat + 1}/{config.repeats} {mapping} over {seeds} seeds: {tried}", file=sys.stderr, flush=True
                )
    counted = {name: {"runs": len(runs), "hung": sum(run["hung"] for run in runs)} for name, runs in results.items()}
    write("vmapped_training", {"environment_steps": config.steps, "counted": counted, "runs": results}, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config))
