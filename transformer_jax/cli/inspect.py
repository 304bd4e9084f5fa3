"""transformer-jax inspect: what is in a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Args:
    """Show what is in a run: step, parameters, dev metrics, settings.

    Every file that is read is checked against its SHA-256. Two checkpoints with the
    same params_sha256 hold the same parameters, bit by bit.
    """

    checkpoint: Path
    """The run: the workdir of a training, or the output of average."""
    step: int | None = None
    """Checkpoint to look at. Default: the latest."""
    json: bool = False
    """Write one JSON object, with all settings."""


def run(args: Args) -> int:
    """Prints it."""
    facts = inspect_run(args.checkpoint, step=args.step)
    print(json.dumps(facts, indent=2) if args.json else in_words(facts))
    return 0


def inspect_run(checkpoint: str | Path, *, step: int | None = None) -> dict[str, Any]:
    """What `--json` writes."""
    from transformer_jax.checkpoint import (
        CheckpointStore,
        count_params,
        params_sha256,
    )

    store = CheckpointStore(checkpoint)
    step = store.chosen_step(store.latest_step() if step is None else step)
    params = store.restore_params(step=step, ema=False)
    facts = {
        "run": str(checkpoint),
        "step": step,
        "steps": store.steps(),
        "best_step": store.best_step(),
        "parameter_count": count_params(params),
        "params_sha256": params_sha256(params),
    }
    if store.has_ema(step):
        facts["ema_params_sha256"] = params_sha256(store.restore_params(step=step))
    return {
        **facts,
        "metrics": store.metrics(step),
        "note": store.note(step),
        "origin": store.origin(),
        "resumable": store.position(step) is not None,
        "config": json.loads(store.config_json(step)),
    }


def in_words(facts: dict[str, Any]) -> str:
    """The same for reading; of the settings, those that are not the defaults."""
    from transformer_jax.config import Config
    from transformer_jax.recipes import changed_settings, config_from_json

    config = config_from_json(json.dumps(facts["config"]))
    metrics = [f"{name} {value:.4g}" for name, value in facts["metrics"].items()]
    best = facts["best_step"]
    lines = {
        "run": facts["run"],
        "step": f"{facts['step']:,}",
        "checkpoints": ", ".join(map(str, facts["steps"])),
        "best step": "none chosen" if best is None else best,
        "parameters": f"{facts['parameter_count']:,}",
        "params_sha256": facts["params_sha256"],
        "ema_params_sha256": facts.get("ema_params_sha256", ""),
        "dev metrics": ", ".join(metrics) or "none",
        "note": facts["note"],
        "origin": _origin(facts["origin"]),
    }
    text = [f"{name:<19}{value}" for name, value in lines.items() if value != ""]
    text.append("settings that are not the defaults:")
    changes = changed_settings(Config(), config)
    text += [f"  {change.name} {change.new}" for change in changes] or ["  none"]
    return "\n".join(text)


def _origin(origin: dict[str, Any] | None) -> str:
    """Where the first weights came from: another run, or another library's files."""
    if origin is None:
        return ""
    if "library" in origin:
        return "{path} of {library}".format(**origin)
    return "{run} step {step}".format(**origin)
