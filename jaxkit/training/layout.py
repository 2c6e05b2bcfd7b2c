"""A plan put on its data, its mesh and its keys: the shapes of every stage, where they live, and the compiled
pieces."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxkit import check
from jaxkit.learner import Data, HostSource, Plan, Source, State
from jaxkit.training import program
from jaxkit.training.checkpoints import first_difference, signature
from jaxkit.training.keys import Streams, is_key, seed_keys, streams
from jaxkit.training.program import Carry, Place
from jaxkit.training.sharding import DEFAULT, Rules, batch_sharding, state_shardings

PyTree = Any


@functools.lru_cache(maxsize=8)
def _wrap_keys(impl: Any, sharding: Any) -> Callable:
    return jax.jit(functools.partial(jax.random.wrap_key_data, impl=impl), out_shardings=sharding)


def _like(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def seed_of(data: Data, number: int) -> Data:
    """The data of one seed, where each has its own."""
    return jax.tree.map(lambda leaf: leaf[number], data)


class Layout:
    """The plan, compiled stage by stage when asked."""

    def __init__(
        self,
        plan: Plan,
        data: Data,
        key: jax.Array,
        mesh: Mesh | None = None,
        rules: Rules = DEFAULT,
        seeds: int | None = None,
        tag: str = "",
        per_seed: bool = False,
        start: State | None = None,
    ):
        self.per_seed = per_seed
        self.plan, self.key, self.mesh, self.rules, self.seeds = plan, key, mesh, rules, seeds
        self.tag = tag  # what else makes the run this one; compared on resume
        self.whole = SingleDeviceSharding(jax.devices()[0]) if mesh is None else NamedSharding(mesh, P())
        self.data = self.put(data)
        self.start = None if start is None else self.put(start)  # what the first stage begins with

    def put(self, tree: PyTree) -> PyTree:
        """Arrays on the one device, or whole on every device of the mesh."""
        if self.mesh is None:
            return jax.device_put(tree)
        return jax.tree.map(self._put_whole, tree)

    def _put_whole(self, leaf: Any) -> jax.Array:
        if not is_key(leaf):
            return jax.device_put(leaf, self.whole)
        # device_put refuses typed keys on a mesh of several processes; their data travels as NumPy does.
        return _wrap_keys(jax.random.key_impl(leaf), self.whole)(np.asarray(jax.random.key_data(leaf)))

    def keys(self, number: int) -> Streams:
        """The streams of stage ``number``, with a seed axis if there are seeds."""
        if self.seeds is None:
            return self.put(streams(self.key, number))
        return self.put(jax.vmap(functools.partial(streams, stage=number))(seed_keys(self.key, self.seeds)))

    def open(self, number: int, step: int) -> Generator[PyTree]:
        """The batches of a stage's HostSource from a step on; closing it closes the source's own iterator."""
        source = self.plan[number].source
        assert isinstance(source, HostSource)
        batches = iter(source.open(self.data, self.keys(number).source, step))
        try:
            yield from batches
        finally:
            if hasattr(batches, "close"):
                batches.close()

    @functools.cached_property
    def _first_batch(self) -> PyTree:
        """A batch for a first stage that is fed by a HostSource and begins with nothing; None elsewhere."""
        stage = self.plan[0]
        if not isinstance(stage.source, HostSource) or stage.begin is not None or self.start is not None:
            return None
        batches = self.open(0, 0)
        batch = next(batches)
        batches.close()
        return batch

    def _example(self, number: int) -> PyTree:
        return None if number else self._first_batch

    def _opened(self, number: int, state: State | None) -> Carry:
        """The shapes of a stage's carry after its begin."""
        stage = self.plan[number]
        begin = program.compile_begin(stage.begin, stage.learner, stage.source, self.seeds, None, self.per_seed)
        state = jax.eval_shape(begin, state, self.data, self.keys(number), self._example(number))
        if isinstance(stage.source, HostSource):
            return Carry(state, ())
        init = program.compile_source_init(stage.source, self.seeds, None, self.per_seed)
        return Carry(state, jax.eval_shape(init, self.data, self.keys(number)))

    @functools.cached_property
    def _chain(self) -> tuple[list[Carry], list[State]]:
        chain: list[Carry] = []
        ends: list[State] = []
        state = self.start
        for number, stage in enumerate(self.plan):
            chain.append(self._opened(number, state))
            state = chain[-1].state
            if stage.end is not None:
                end = program.compile_end(stage.end, self.seeds, None, self.per_seed)
                state = jax.eval_shape(end, state, self.data, self.keys(number))
            ends.append(state)
        return chain, ends

    def check_start(self) -> None:
        """Whether the first stage can go on from the state that is given.

        Raises:
          UsageError: without a begin, its leaves are not those of the learner; with one, begin or a step does not take
            it.
        """
        if self.start is None:
            return
        stage, misfit = self.plan[0], f"state does not fit stage {self.plan[0].name!r}"
        if stage.begin is None:
            fresh = Layout(self.plan, self.data, self.key, None, self.rules, self.seeds, per_seed=self.per_seed)
            wanted = fresh._opened(0, None).state
            path, found, other = first_difference(signature(self.start), signature(wanted)) or ("", "", "")
            if path:
                raise check.UsageError(f"{misfit}: its {path} is {found}, that of the learner is {other}")
            structures: list[Any] = [jax.tree.structure(tree) for tree in (self.start, wanted)]
            if structures[0] != structures[1]:
                raise check.UsageError(f"{misfit}: the learner's is a {type(wanted).__name__} with the same leaves")
            return
        try:
            carry = self._opened(0, self.start)
            if isinstance(stage.source, Source):  # traced here, not again by the first dispatch
                jax.eval_shape(self.steps(0), carry, self.data, self.keys(0), np.int32(0), np.int32(1))
        except check.UsageError:
            raise
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise check.UsageError(f"{misfit}: {type(error).__name__}: {why}") from None

    @property
    def shapes(self) -> list[Carry]:
        """The carry of each stage after its begin, as ShapeDtypeStructs, from the chain of begins and ends."""
        return self._chain[0]

    @property
    def ends(self) -> list[State]:
        """The state of each stage after its end, as ShapeDtypeStructs."""
        return self._chain[1]

    def _shard(self, shapes: State) -> PyTree:
        """The sharding of each leaf of a state."""
        if self.mesh is None:
            return jax.tree.map(lambda leaf: self.whole, shapes)
        return state_shardings(shapes, self.mesh, self.rules, lead=int(self.seeds is not None))

    def shardings(self, number: int) -> Carry:
        """The sharding of each leaf of the carry of a stage; what a source carries is whole on every device."""
        state, source_state = self.shapes[number]
        return Carry(self._shard(state), jax.tree.map(lambda leaf: self.whole, source_state))

    def _place(self, number: int) -> tuple[Place | None, Place | None, Place | None]:
        """The places of the carry, the state and the source's state."""
        if self.mesh is None:
            return None, None, None
        shardings = self.shardings(number)
        return Place.of(shardings), Place.of(shardings.state), Place.of(shardings.source_state)

    def templates(self, number: int) -> Carry:
        """The carry inside a stage as a checkpoint's reader wants it: shapes with their shardings."""
        return jax.tree.map(_like, self.shapes[number], self.shardings(number))

    def end_template(self, number: int) -> State:
        """The state after a stage's end, likewise."""
        return jax.tree.map(_like, self.ends[number], self._shard(self.ends[number]))

    def begin(self, number: int, before: State | None) -> Carry:
        """The carry at the start of a stage, made where it will live."""
        stage, (_, place, source_place) = self.plan[number], self._place(number)
        begin = program.compile_begin(stage.begin, stage.learner, stage.source, self.seeds, place, self.per_seed)
        state = begin(before, self.data, self.keys(number), self._example(number))
        if isinstance(stage.source, HostSource):
            return Carry(state, ())
        init = program.compile_source_init(stage.source, self.seeds, source_place, self.per_seed)
        return Carry(state, init(self.data, self.keys(number)))

    def steps(self, number: int) -> Callable:
        """The compiled steps of a stage (``program.compile_steps``)."""
        stage = self.plan[number]
        place = self._place(number)[0]
        return program.compile_steps(stage.learner, stage.source, self.seeds, self.mesh, place, self.per_seed)

    def end(self, number: int, state: State) -> State:
        """The state after a stage's end."""
        stage = self.plan[number]
        if stage.end is None:
            return state
        place = None if self.mesh is None else Place.of(self._shard(self.ends[number]))
        return program.compile_end(stage.end, self.seeds, place, self.per_seed)(state, self.data, self.keys(number))

    @functools.cached_property
    def batches(self) -> list[PyTree]:
        """The shapes of a batch of each stage; None for a HostSource.

        Raises:
          UsageError: before anything compiles, when a batch does not divide over the mesh.
        """
        return [self._batch(number) for number in range(len(self.plan))]

    def _batch(self, number: int) -> PyTree:
        source = self.plan[number].source
        if isinstance(source, HostSource):
            return None
        alone, data = self, seed_of(self.data, 0) if self.per_seed else self.data
        if self.seeds is not None:
            start = None if self.start is None else seed_of(self.start, 0)
            alone = Layout(self.plan, data, self.key, None, self.rules, None, start=start)
        carry, step = alone.shapes[number], jnp.zeros((), jnp.int32)
        batch = jax.eval_shape(source.next, data, carry.source_state, carry.state, step, alone.keys(number).source)[1]
        if self.mesh is not None:
            batch_sharding(batch, self.mesh, source.axis)
        return batch
