"""What do the formulas of the papers give, written down head by head in numpy and float64?"""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotary(x_th, positions, theta, dims):
    """Rotation of complex numbers whose real and imaginary parts are the two halves of the first `dims`."""
    half = dims // 2
    z = x_th[:, :half] + 1j * x_th[:, half:dims]
    z = z * np.exp(1j * positions[:, None] * theta ** (-2.0 * np.arange(half) / dims)[None]) if dims else z
    return np.concatenate([z.real, z.imag, x_th[:, dims:]], axis=1)


def head(q_th, k_sh, v_sh, visible, softcap):
    scores = q_th @ k_sh.T / math.sqrt(q_th.shape[1])
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    return softmax(np.where(visible, scores, -np.inf)) @ v_sh


def norm(c, params, x):
    if c.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
    return x * (params["scale"] + c.norm_offset) + (params["bias"] if c.norm == "layer" else 0.0)


def activation(name, x):
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(c, params, x, positions, visible):
    outputs = np.zeros_like(x)
    for j in range(c.kv_heads):
        weights = params["qkv"][:, j]
        bias = params["qkv_bias"][j] if c.qkv_bias else np.zeros((c.group + 2, c.head_dim))
        keys = x @ weights[:, c.group] + bias[c.group]
        values = x @ weights[:, c.group + 1] + bias[c.group + 1]
        if c.qk_norm:
            keys = norm(c, params["k_norm"], keys)
        keys = rotary(keys, positions, c.rope_theta, c.rotary_dims)
        for i in range(c.group):
            queries = x @ weights[:, i] + bias[i]
            if c.qk_norm:
                queries = norm(c, params["q_norm"], queries)
            queries = rotary(queries, positions, c.rope_theta, c.rotary_dims)
            outputs += head(queries, keys, values, visible, c.attention_softcap) @ params["out"][j, i]
    return outputs + (params["out_bias"] if c.out_bias else 0.0)


def mlp(c, params, x):
    parts = [
        x @ params["up"][:, i] + (params["up_bias"][i] if c.mlp_bias else 0.0) for i in range(params["up"].shape[1])
    ]
    hidden = activation(c.activation, parts[0]) * (parts[1] if c.gated else 1.0)
    return hidden @ params["down"] + (params["down_bias"] if c.mlp_bias else 0.0)


def visible(length, window, segments=None):
    return np.array(
        [
            [
                s <= t and (not window or t - s < window) and (segments is None or segments[s] == segments[t])
                for s in range(length)
            ]
            for t in range(length)
        ]
    )


def logits(c, params, tokens_t, positions=None, segments=None):
    """[t, v] for one row of tokens."""
    positions = np.arange(len(tokens_t)) if positions is None else positions
    seen = visible(len(tokens_t), c.window, segments)
    x = params["embedding"][tokens_t] * (math.sqrt(c.embed) if c.embed_scale else 1.0)
    for i in range(c.layers):
        block = params["layers"][str(i)]
        attended = attention(c, block["attention"], norm(c, block["attention_norm"], x), positions, seen)
        if c.parallel_residual:
            x = x + attended + mlp(c, block["mlp"], norm(c, block["mlp_norm"], x))
        else:
            x = x + attended
            x = x + mlp(c, block["mlp"], norm(c, block["mlp_norm"], x))
    x = norm(c, params["final_norm"], x)
    out = x @ (params["embedding"].T if c.tie_embeddings else params["head"])
    return c.logit_softcap * np.tanh(out / c.logit_softcap) if c.logit_softcap else out
