"""A run on disk: checkpoints that are whole or absent, and checked when they are read.

RUN/run.json                        settings; digests of the tokenizer's files
RUN/tokenizer/…                     opaque files
RUN/checkpoints/00001000/
    params/ ema_params/ training/   arrays, written by Orbax
    checkpoint.json                 step, metrics, data position, shapes
    config.json, tokenizer/…        copies: a checkpoint explains itself
    SHA256SUMS                      of all the above; `sha256sum -c` reads it
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from transformer_jax.processes import is_main_process, wait_for_all
from transformer_jax.sealed import (
    SealedFolder,
    check_digest,
    digest,
    read_file,
    seal,
    sync,
    write_files,
)
from transformer_jax.trees import average_params, count_params, describe, params_sha256
from transformer_jax.types import Params

__all__ = [
    "CheckpointError",
    "CheckpointStore",
    "average_params",
    "count_params",
    "params_sha256",
]

FORMAT_VERSION = 1
"""Raised when an older reader would misread what is written."""
FILE_SIZE = 16 * 2**20
"""Bytes that are collected before they are written: not a whole model, which would
then be in memory once more."""
UNFINISHED = "unfinished-"
"""Start of the names of folders that are being written or deleted."""


class CheckpointError(ValueError):
    """A run or checkpoint that is missing, damaged, or of another model."""


class CheckpointStore:
    """The checkpoints of one run. Every process calls; process 0 writes what is not
    arrays. The latest `keep` checkpoints stay, and the best one besides."""

    def __init__(self, workdir: str | Path, *, keep: int = 10):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must stay.")
        self.workdir, self._keep = Path(workdir), keep
        self._folder = self.workdir / "checkpoints"

    # The run as a whole.

    def has_run(self) -> bool:
        """Whether `write_run` was called on this folder, now or earlier."""
        return (self.workdir / "run.json").is_file()

    def write_run(
        self,
        config_json: str,
        tokenizer_files: Mapping[str, bytes],
        *,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes the folder a run, or renews its settings; `origin` says where its first
        weights came from, if they were not drawn at random."""
        wait_for_all("write_run begins")
        if is_main_process():
            run = {
                "format": "transformer_jax run",
                "version": FORMAT_VERSION,
                "config": json.loads(config_json),
                "tokenizer": {n: digest(x) for n, x in tokenizer_files.items()},
                "origin": origin,
            }
            run["sha256"] = digest(_to_json(run))
            write_files(self.workdir / "tokenizer", tokenizer_files)
            new = self.workdir / "run.json.new"
            new.write_bytes(_to_json(run))
            new.replace(self.workdir / "run.json")
        wait_for_all("write_run ends")

    def config_json(self, step: int | None = None) -> str:
        """Settings, as JSON: of the run, or as they were at a checkpoint."""
        if step is None:
            return json.dumps(self._run()["config"], indent=2)
        return self._checkpoint(step).read("config.json").decode()

    def origin(self) -> dict[str, Any] | None:
        """Where the run's first weights came from: None if drawn at random."""
        return self._run().get("origin")

    def tokenizer_files(self, step: int | None = None) -> dict[str, bytes]:
        """The tokenizer's files, by name: of the run, or of a checkpoint."""
        if step is not None:
            return self._checkpoint(step).read_all("tokenizer")
        files = {}
        for name, noted in self._run()["tokenizer"].items():
            path = self.workdir / "tokenizer" / name
            files[name] = read_file(path)
            check_digest(path, digest(files[name]), noted)
        return files

    def _run(self) -> dict[str, Any]:
        path = self.workdir / "run.json"
        wanted = "Give the workdir of a training, or the output of average or import"
        if not self.workdir.exists():
            raise CheckpointError(f"There is no folder {self.workdir}. {wanted}.")
        if (self.workdir / "checkpoint.json").is_file():
            raise CheckpointError(
                f"{self.workdir} is a single checkpoint. {wanted}, and choose the "
                f"checkpoint with --step {self.workdir.name.lstrip('0')}."
            )
        if not self.has_run():
            raise CheckpointError(
                f"{self.workdir} is not a run: it has no run.json. {wanted}."
            )
        run = _parse(path, read_file(path), "transformer_jax run")
        noted = run.pop("sha256", "")
        check_digest(path, digest(_to_json(run)), noted)
        return run

    # What there is.

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def latest_step(self) -> int | None:
        """The last step that has a checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The last step that was saved as the best so far, if any was."""
        for step in reversed(self.steps()):
            if self._checkpoint(step).facts["best"]:
                return step
        return None

    def chosen_step(self, step: int | None = None) -> int:
        """`step` if given, else the best one if one was chosen, else the latest."""
        if step is None:
            step = self.best_step()
        return self._checkpoint(step).step

    def metrics(self, step: int) -> dict[str, float]:
        """Metrics saved with a checkpoint."""
        return self._checkpoint(step).facts["metrics"]

    def position(self, step: int) -> dict[str, Any] | None:
        """The data position saved with a checkpoint; None if it has weights only."""
        return self._checkpoint(step).facts["data_position"]

    def note(self, step: int) -> str:
        """Where a checkpoint came from, if not from training."""
        return self._checkpoint(step).facts["note"]

    def _path(self, step: int) -> Path:
        return self._folder / f"{step:08d}"

    def _checkpoint(self, step: int | None) -> "_Checkpoint":
        """The checkpoint of a step, or the latest."""
        steps = self.steps()
        if not steps:
            self._run()
            raise CheckpointError(
                f"The run {self.workdir} has no checkpoint yet: train it first."
            )
        if step is not None and step not in steps:
            raise CheckpointError(
                f"The run {self.workdir} has no checkpoint of step {step}. It has "
                f"these: {', '.join(map(str, steps))}."
            )
        step = steps[-1] if step is None else step
        return _Checkpoint(self._path(step), step)

    # Writing.

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        *,
        data_position: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        best: bool = False,
        note: str = "",
    ) -> None:
        """Writes a checkpoint: pytrees by name, "params" among them.

        Nothing is seen of it until all is written. One that is there already for this
        step is replaced. `best` marks it as the best so far.
        """
        run, path = self._run(), self._path(step)
        new = path.with_name(UNFINISHED + path.name)
        if is_main_process():
            self._clean()
            new.mkdir(parents=True)
        wait_for_all(f"save {step} begins")
        handler = ocp.PyTreeCheckpointHandler()
        with ocp.AsyncCheckpointer(handler) as checkpointer:
            for name, tree in items.items():
                args = ocp.args.PyTreeSave(
                    jax.tree.map(_uncopied, tree), ocdbt_target_data_file_size=FILE_SIZE
                )
                checkpointer.save((new / name).absolute(), args=args)
        if is_main_process():
            facts = {
                "format": "transformer_jax checkpoint",
                "version": FORMAT_VERSION,
                "step": step,
                "best": best,
                "metrics": {n: float(x) for n, x in (metrics or {}).items()},
                "note": note,
                "data_position": data_position,
                "items": {name: describe(tree) for name, tree in items.items()},
            }
            config = json.dumps(run["config"], indent=2).encode()
            write_files(
                new, {"checkpoint.json": _to_json(facts), "config.json": config}
            )
            write_files(new / "tokenizer", self.tokenizer_files())
            seal(new)
            if path.exists():
                path.rename(path.with_name(UNFINISHED + "old-" + path.name))
            new.rename(path)
            sync(self._folder)
            self._prune()
        wait_for_all(f"save {step} ends")

    def _prune(self) -> None:
        """Deletes all but the latest checkpoints and the best."""
        steps = self.steps()
        extra = steps[: -self._keep]
        for step in reversed(steps):
            try:
                best = self._checkpoint(step).facts["best"]
            except ValueError:
                continue  # Reading it will tell; a training goes on.
            if best:
                extra = [s for s in extra if s != step]
                break
        for step in extra:
            path = self._path(step)
            path.rename(path.with_name(UNFINISHED + path.name))
        self._clean()

    def _clean(self) -> None:
        """Deletes what an interrupted save or deletion left."""
        for path in self._folder.glob(UNFINISHED + "*"):
            shutil.rmtree(path)

    # Reading arrays.

    def restore(
        self, items_like: Mapping[str, Any], *, step: int | None = None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Items of a checkpoint (default: the latest), and its data position.

        `items_like` holds pytrees of `jax.ShapeDtypeStruct`, whose shardings say where
        the arrays go; the mesh may differ from the one that saved.
        """
        checkpoint = self._checkpoint(step)
        for name, like in items_like.items():
            checkpoint.check_fits(name, describe(like))
        items = {
            name: checkpoint.arrays(name, jax.tree.map(_with_sharding, like))
            for name, like in items_like.items()
        }
        return items, checkpoint.facts["data_position"]

    def has_ema(self, step: int) -> bool:
        """Whether a checkpoint has an exponential average of the parameters."""
        return "ema_params" in self._checkpoint(step).facts["items"]

    def restore_params(self, *, step: int | None = None, ema: bool = True) -> Params:
        """Parameters as a nested dict of numpy arrays: with `ema` their exponential
        average, if one was kept. Default: the best checkpoint if one was chosen, else
        the latest.
        """
        checkpoint = self._checkpoint(self.chosen_step(step))
        items = checkpoint.facts["items"]
        name = "ema_params" if ema and "ema_params" in items else "params"
        like = {
            path: np.broadcast_to(np.zeros((), jax.numpy.dtype(dtype)), shape)
            for path, (dtype, shape) in items[name].items()
        }
        return checkpoint.arrays(name, unflatten_dict(like, sep="/"))


class _Checkpoint(SealedFolder):
    """The folder of one checkpoint."""

    def __init__(self, folder: Path, step: int):
        super().__init__(folder)
        self.step = step
        data = self.read("checkpoint.json")
        self.facts = _parse(folder, data, "transformer_jax checkpoint")

    def check_fits(self, item: str, wanted: Mapping[str, tuple]) -> None:
        """Raises at the first array whose shape or type is not the wanted one."""
        items = self.facts["items"]
        if item not in items:
            raise CheckpointError(
                f"{self.folder} has no {item!r}, only {', '.join(items)}: "
                + (
                    "it has weights only. Start a new training from it with "
                    "--init-from."
                    if "training" not in items
                    else "it was saved with other settings."
                )
            )
        stored = {path: (dtype, tuple(s)) for path, (dtype, s) in items[item].items()}
        for path in [*wanted, *sorted(stored.keys() - wanted.keys())]:
            if stored.get(path) != wanted.get(path):
                raise CheckpointError(
                    f"{self.folder} is of another model: {item} {path} is "
                    f"{_show(stored.get(path))} there and {_show(wanted.get(path))} "
                    "here. Use the settings that it was saved with."
                )

    def arrays(self, item: str, like: Any) -> Any:
        """The pytree of an item."""
        self.check(item)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore((self.folder / item).absolute(), like)


class _Uncopied(np.ndarray):
    """Copied by nobody. Orbax copies numpy arrays, lest they change while it writes in
    the background; here `save` waits until all is written."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Uncopied":
        return self


def _uncopied(x: Any) -> Any:
    return x.view(_Uncopied) if type(x) is np.ndarray else x


def _show(described: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if described is None else f"{described[0]} {list(described[1])}"


def _with_sharding(like: Any) -> jax.ShapeDtypeStruct:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(like, "sharding", None) or here
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=sharding)


def _to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _parse(path: Path, data: bytes, kind: str) -> dict[str, Any]:
    """JSON that says of itself what it is."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from None
    if not isinstance(value, dict) or value.get("format") != kind:
        raise CheckpointError(f"{path} is not a {kind}.")
    if value["version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {value['version']}; this program reads up to "
            f"{FORMAT_VERSION}. Install a newer transformer_jax."
        )
    return value
