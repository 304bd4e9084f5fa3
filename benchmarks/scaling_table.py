"""Memory and communication of an update on paper, as the tables of docs/scaling.md.

python benchmarks/scaling_table.py
"""

from transformer_jax.model_config import ModelConfig, sized_model
from transformer_jax.scaling import MeshShape, communication, memory

TOKENS = 8192
"""Target positions of a device, and as many source positions."""
ROW_LENGTH = 128
VOCABULARY = 37_120
"""The paper's 37,000, rounded up to what 256 devices can share."""

LARGE = ModelConfig(
    num_encoder_layers=8,
    num_decoder_layers=8,
    d_model=2048,
    d_ff=8192,
    num_heads=16,
    norm_position="pre",
    dtype="bfloat16",
    remat=True,
    source_vocab_size=VOCABULARY,
    target_vocab_size=VOCABULARY,
)
"""A billion parameters."""
MODELS = {
    name: sized_model(
        name,
        dtype="bfloat16",
        source_vocab_size=VOCABULARY,
        target_vocab_size=VOCABULARY,
    )
    for name in ("base", "big")
} | {"1B, `remat`": LARGE}
MESHES = {
    "base": [(1, 1, 1), (8, 1, 1), (64, 1, 1), (256, 1, 1)],
    "big": [(1, 1, 1), (8, 1, 1), (8, 8, 1), (32, 8, 1)],
    "1B, `remat`": [(1, 1, 1), (1, 8, 1), (1, 4, 2), (8, 8, 1), (32, 8, 1), (16, 8, 2)],
}


def gib(size: float) -> str:
    """GiB, with as many digits as tell something.

    >>> gib(3 * 2**30), gib(0)
    ('3.00', '–')
    """
    return f"{size / 2**30:.2f}" if size else "–"


def table() -> list[str]:
    """The lines of both tables as one: memory, then what is sent."""
    head = (
        "model",
        "devices",
        "data × fsdp × tensor",
        "parameters",
        "Adam",
        "gradients",
        "copies",
        "activations",
        "loss",
        "**in all**",
        "sent: gradients",
        "parameters",
        "activations",
    )
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, model in MODELS.items():
        for axes in MESHES[name]:
            mesh = MeshShape(*axes)
            # Devices of a tensor axis work on the same rows.
            batch = TOKENS * mesh.shards
            kept = memory(model, mesh, batch_tokens=batch, row_length=ROW_LENGTH)
            sent = communication(model, mesh, batch_tokens=batch)
            cells = [
                name,
                str(mesh.size),
                " × ".join(map(str, axes)),
                *map(gib, kept),
                f"**{gib(kept.total)}**",
                *map(gib, sent),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
