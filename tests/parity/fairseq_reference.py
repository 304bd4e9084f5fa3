"""fairseq's transformer in numpy, from its published definition, with nothing of ours.

fairseq itself does not build on the Python versions that this package runs on.
"""

import math

import numpy as np

D, F, HEADS, SOURCES, TARGETS, LONGEST = 16, 24, 4, 13, 11, 20
PAD, EOS = 1, 2
TINY = {
    "arch": "transformer",
    "task": "translation",
    "encoder_embed_dim": D,
    "decoder_embed_dim": D,
    "encoder_ffn_embed_dim": F,
    "decoder_ffn_embed_dim": F,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "max_source_positions": LONGEST,
    "max_target_positions": LONGEST,
    "dropout": 0.3,
    "source_vocab_size": SOURCES,
    "target_vocab_size": TARGETS,
}
PRE = {"encoder_normalize_before": True, "decoder_normalize_before": True}
LEARNED = {"encoder_learned_pos": True, "decoder_learned_pos": True}
ALL_TIED = {"share_all_embeddings": True, "source_vocab_size": TARGETS}
VARIANTS = {
    "plain": {},
    "pre": PRE,
    "learned": LEARNED,
    "pre_learned_gelu": {**PRE, **LEARNED, "activation_fn": "gelu"},
    "output_tied": {"share_decoder_input_output_embed": True},
    "all_tied": {**ALL_TIED, "no_scale_embedding": True},
    "no_final_norm": {**PRE, "encoder_version": 1, "decoder_version": 1},
}


def random_state(args, seed=0):
    """Random numbers in all that a model of these arguments keeps."""
    draw = np.random.default_rng(seed)
    state = {}

    def put(name, *shape):
        spread = 0.4 if len(shape) > 1 else 0.2
        state[name] = draw.normal(0, spread, shape).astype(np.float32)

    def norm(name):
        put(f"{name}.weight", D)
        state[f"{name}.weight"] += 1
        put(f"{name}.bias", D)

    def linear(name, size_out, size_in):
        put(f"{name}.weight", size_out, size_in)
        put(f"{name}.bias", size_out)

    for side, size in (("encoder", SOURCES), ("decoder", TARGETS)):
        state[f"{side}.version"] = np.array([args.get(f"{side}_version", 3.0)], "f")
        put(f"{side}.embed_tokens.weight", args.get("source_vocab_size", size), D)
        if side == "decoder":
            put(f"{side}.embed_tokens.weight", size, D)
        if args.get("encoder_learned_pos"):
            put(f"{side}.embed_positions.weight", LONGEST + PAD + 1, D)
        else:
            state[f"{side}.embed_positions._float_tensor"] = np.array([np.nan], "f")
        for i in range(args[f"{side}_layers"]):
            layer = f"{side}.layers.{i}"
            for block in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for name in ("k", "v", "q", "out"):
                    linear(f"{layer}.{block}.{name}_proj", D, D)
                norm(f"{layer}.{block}_layer_norm")
            linear(f"{layer}.fc1", F, D)
            linear(f"{layer}.fc2", D, F)
            norm(f"{layer}.final_layer_norm")
        if args.get("encoder_normalize_before") and args.get("encoder_version", 3) == 3:
            norm(f"{side}.layer_norm")
    if args.get("share_all_embeddings"):
        state["decoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"]
    put("decoder.output_projection.weight", TARGETS, D)
    if args.get("share_all_embeddings") or args.get("share_decoder_input_output_embed"):
        state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"]
    return state


class Reference:
    """The published definition in numpy, in float64, one sentence pair at a time."""

    def __init__(self, args, state):
        self.args = args
        self.state = {name: x.astype(np.float64) for name, x in state.items()}

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def positions(self, side, ids):
        # Counted from the pad id on, over tokens that are no padding.
        real = ids != PAD
        places = np.cumsum(real) * real + PAD
        if self.args.get(f"{side}_learned_pos"):
            return self.state[f"{side}.embed_positions.weight"][places]
        rates = [math.exp(-math.log(10000) * i / (D // 2 - 1)) for i in range(D // 2)]
        angles = places[:, None] * np.array(rates)[None, :]
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        return waves * real[:, None]

    def embed(self, side, ids):
        scale = 1.0 if self.args.get("no_scale_embedding") else math.sqrt(D)
        return scale * self.state[f"{side}.embed_tokens.weight"][ids] + self.positions(
            side, ids
        )

    def attend(self, name, x, y, allowed):
        size = D // HEADS
        q = self.linear(f"{name}.q_proj", x) * size**-0.5
        k, v = self.linear(f"{name}.k_proj", y), self.linear(f"{name}.v_proj", y)
        heads = []
        for n in range(HEADS):
            part = slice(n * size, (n + 1) * size)
            scores = np.where(allowed, q[:, part] @ k[:, part].T, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        return self.linear(f"{name}.out_proj", np.concatenate(heads, axis=1))

    def sublayer(self, norm, x, function):
        if self.args.get("encoder_normalize_before"):
            return x + function(self.norm(norm, x))
        return self.norm(norm, x + function(x))

    def feed(self, layer, x):
        h = self.linear(f"{layer}.fc1", x)
        if self.args.get("activation_fn") == "gelu":
            h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        else:
            h = np.maximum(h, 0)
        return self.linear(f"{layer}.fc2", h)

    def end(self, side, x):
        pre = self.args.get("encoder_normalize_before")
        newest = self.args.get(f"{side}_version", 3) == 3
        return self.norm(f"{side}.layer_norm", x) if pre and newest else x

    def logits(self, source, fed):
        """Source ids [S] and decoder inputs [T], both with padding → [T, V]."""
        real = (source != PAD)[None, :]
        x = self.embed("encoder", source) * (source != PAD)[:, None]
        for i in range(self.args["encoder_layers"]):
            layer = f"encoder.layers.{i}"
            name = f"{layer}.self_attn"
            x = self.sublayer(
                f"{name}_layer_norm",
                x,
                lambda y, name=name: self.attend(name, y, y, real),
            )
            x = self.sublayer(
                f"{layer}.final_layer_norm", x, lambda y, at=layer: self.feed(at, y)
            )
        encoded, x = self.end("encoder", x), self.embed("decoder", fed)
        before = np.tril(np.ones((len(fed), len(fed)), bool)) & (fed != PAD)[None, :]
        for i in range(self.args["decoder_layers"]):
            layer = f"decoder.layers.{i}"
            for name, keys, allowed in (
                (f"{layer}.self_attn", None, before),
                (f"{layer}.encoder_attn", encoded, real),
            ):

                def attend(y, name=name, keys=keys, allowed=allowed):
                    return self.attend(name, y, y if keys is None else keys, allowed)

                x = self.sublayer(f"{name}_layer_norm", x, attend)
            x = self.sublayer(
                f"{layer}.final_layer_norm", x, lambda y, at=layer: self.feed(at, y)
            )
        output = self.state["decoder.output_projection.weight"]
        return self.end("decoder", x) @ output.T
