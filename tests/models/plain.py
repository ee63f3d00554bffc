"""What do the formulas of the papers give, written down head by head in numpy and float64?"""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotary(x_th, positions, theta, dims):
    """Rotation of complex numbers whose real and imaginary parts are the two halves of the first `dims`."""
    return turned(x_th, positions, theta ** (-2.0 * np.arange(dims // 2) / max(dims, 1)), 1.0)


def turned(x_th, positions, frequencies, factor):
    half = len(frequencies)
    z = x_th[:, :half] + 1j * x_th[:, half : 2 * half]
    z = z * factor * np.exp(1j * positions[:, None] * frequencies[None])
    return np.concatenate([z.real, z.imag, x_th[:, 2 * half :]], axis=1)


def frequencies(c, windowed):
    """Pair by pair, as the papers' formulas have it, and the factor on cosines and sines."""
    dims, s, length = c.rotary_dims, c.rope_factor, c.rope_original_len
    theta = c.rope_local_theta if windowed and c.rope_local_theta else c.rope_theta
    plain = [theta ** (-2.0 * i / dims) for i in range(dims // 2)]
    if c.rope_type == "plain" or theta == c.rope_local_theta:
        return np.array(plain), 1.0
    if c.rope_type == "linear":
        return np.array(plain) / s, 1.0
    if c.rope_type == "dynamic":
        longer = (s * c.seq_len / length) - (s - 1) if c.seq_len > length else 1.0
        return np.array([(theta * longer ** (dims / (dims - 2))) ** (-2.0 * i / dims) for i in range(dims // 2)]), 1.0
    if c.rope_type == "llama3":
        found = []
        for f in plain:
            wavelength = 2 * math.pi / f
            smooth = (length / wavelength - c.rope_low_freq) / (c.rope_high_freq - c.rope_low_freq)
            if wavelength < length / c.rope_high_freq:
                found.append(f)
            elif wavelength > length / c.rope_low_freq:
                found.append(f / s)
            else:
                found.append((1 - smooth) * f / s + smooth * f)
        return np.array(found), 1.0
    bounds = [
        dims * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))
        for turns in (c.rope_beta_fast, c.rope_beta_slow)
    ]
    low, high = max(math.floor(bounds[0]), 0), min(math.ceil(bounds[1]), dims - 1)
    ramp = [min(max((i - low) / (high - low if high > low else 1e-3), 0.0), 1.0) for i in range(dims // 2)]
    mixed = [f / s * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]
    return np.array(mixed), c.rope_attention_factor or 0.1 * math.log(s) + 1


def head(q_th, k_sh, v_sh, visible, softcap, scale=0.0):
    scores = q_th @ k_sh.T * (scale or 1 / math.sqrt(q_th.shape[1]))
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


def attention(c, params, x, positions, visible, windowed=False):
    def turn(x_th):
        return turned(x_th, positions, *frequencies(c, windowed)) if c.rotary_dims else x_th

    def all_normed(name, part, number):
        """Of a head: its part of the norm over all of them, which takes products of all heads."""
        weights, bias = params["qkv"][:, :, part], params["qkv_bias"][:, part] if c.qkv_bias else 0.0
        every = np.einsum("td,dk...h->tk...h", x, weights) + bias
        return norm(c, params[name], every.reshape(len(x), -1)).reshape(len(x), -1, c.head_dim)[:, number]

    outputs = np.zeros_like(x)
    for j in range(c.kv_heads):
        weights = params["qkv"][:, j]
        bias = params["qkv_bias"][j] if c.qkv_bias else np.zeros((c.group + 2, c.head_dim))
        keys = x @ weights[:, c.group] + bias[c.group]
        values = x @ weights[:, c.group + 1] + bias[c.group + 1]
        if c.qk_norm == "head":
            keys = norm(c, params["k_norm"], keys)
        if c.qk_norm == "full":
            keys = all_normed("k_norm", c.group, j)
        keys = turn(keys)
        for i in range(c.group):
            queries = x @ weights[:, i] + bias[i]
            if c.qk_norm == "head":
                queries = norm(c, params["q_norm"], queries)
            if c.qk_norm == "full":
                queries = all_normed("q_norm", slice(0, c.group), j * c.group + i)
            scaled = head(turn(queries), keys, values, visible, c.attention_softcap, c.attention_scale)
            outputs += scaled @ params["out"][j, i]
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
    x = params["embedding"][tokens_t] * (math.sqrt(c.embed) if c.embed_scale else 1.0)
    if c.positions == "learned":
        x = x + params["positions"][positions]
    for i in range(c.layers):
        block = params["layers"][str(i)]
        window = c.window if i >= c.window_from and not (c.global_every and (i + 1) % c.global_every == 0) else 0
        seen = visible(len(tokens_t), window, segments)

        def part(name, f, x, block=block):
            y = f(norm(c, block[name + "_norm"], x) if c.norm_place in ("pre", "both") else x)
            return norm(c, block[name + "_post_norm"], y) if c.norm_place in ("post", "both") else y

        def attend(h, block=block, seen=seen, window=window):
            return attention(c, block["attention"], h, positions, seen, window > 0)

        def feed(h, block=block):
            return mlp(c, block["mlp"], h)

        attended = part("attention", attend, x)
        if c.parallel_residual:
            x = x + attended + part("mlp", feed, x)
        else:
            x = x + attended
            x = x + part("mlp", feed, x)
    x = norm(c, params["final_norm"], x)
    out = x @ (params["embedding"].T if c.tie_embeddings else params["head"])
    return c.logit_softcap * np.tanh(out / c.logit_softcap) if c.logit_softcap else out
