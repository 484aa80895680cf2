"""The paper's equations, written naively: the oracle of the model tests.

Everything is computed for one video, one layer and one frame at a time, and
prompts are concatenated to the tokens, go through the whole layer, and are
thrown away behind it. Only CLIP's own modules are reused: a block of
open_clip runs as open_clip wrote it.
"""

import torch


def learned(prompt, layer, num_frames, cls):
    """(Sec. 3.2) The same P tokens for every frame."""
    return [prompt.tokens[layer - prompt.first]] * num_frames


def position(prompt, layer, num_frames, cls):
    """(Sec. 3.3.1) P tokens by the frame's position."""
    table = prompt.tokens[layer - prompt.first]
    size = len(table)
    return [table[int((i + 0.5) / num_frames * size)] for i in range(num_frames)]


def context(prompt, layer, num_frames, cls):
    """(Sec. 3.3.2) P tokens made from the [CLS] of all frames."""
    tokens = linear(prompt.fc, cmm_states(prompt.cmm, cls))
    return [frame.reshape(-1, cls.shape[-1]) for frame in tokens]


def linear(fc, x):
    return x @ fc.weight.T + fc.bias


def cmm_states(cmm, cls):
    """What a context modelling module makes of the [CLS] of all frames."""
    num_frames = len(cls)
    if isinstance(cmm, torch.nn.LSTM):
        states = lstm(cmm, cls, '')
        if cmm.bidirectional:
            backward = lstm(cmm, cls.flip(0), '_reverse').flip(0)
            states = torch.cat([states, backward], dim=-1)
        return states
    size = len(cmm.positional_embedding)
    states = torch.stack(
        [
            cls[i] + cmm.positional_embedding[int((i + 0.5) / num_frames * size)]
            for i in range(num_frames)
        ]
    )
    for block in cmm.layers:
        states = transformer_layer(block, states)
    return states


def lstm(module, inputs, suffix):
    """One direction of an LSTM, step by step."""
    w_in, w_state, b_in, b_state = (
        getattr(module, f'{name}_l0{suffix}')
        for name in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
    )
    hidden = cell = inputs.new_zeros(module.hidden_size)
    outputs = []
    for x in inputs:
        gates = w_in @ x + b_in + w_state @ hidden + b_state
        i, f, g, o = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs)


def transformer_layer(layer, x):
    """A pre-norm transformer layer over frames."""
    attn = layer.self_attn
    h = layer.norm1(x)
    q, k, v = (h @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
    heads = []
    for q_, k_, v_ in zip(*(t.chunk(attn.num_heads, -1) for t in (q, k, v))):
        scores = q_ @ k_.T / q_.shape[-1] ** 0.5
        heads.append(scores.softmax(-1) @ v_)
    x = x + attn.out_proj(torch.cat(heads, -1))
    h = torch.nn.functional.gelu(layer.linear1(layer.norm2(x)))
    return x + layer.linear2(h)


KINDS = dict(LearnedPrompt=learned, PositionPrompt=position, ContextPrompt=context)


def prompt_tokens(encoder, layer, num_frames, cls):
    """The prompts of each frame in a layer, each [P x d], or None."""
    served = [p for p in encoder.prompts if p.first <= layer <= p.last]
    if not served:
        return [None] * num_frames
    each = [KINDS[type(p).__name__](p, layer, num_frames, cls) for p in served]
    return [torch.cat(tokens) for tokens in zip(*each)]


def run_block(encoder, layer, tokens, mask=None):
    block = encoder.backbone.transformer.resblocks[layer - 1]
    if not encoder.adapters:
        return block(tokens[None], attn_mask=mask)[0]
    h = block.ln_1(tokens)
    tokens = (
        tokens
        + block.attention(h[None], attn_mask=mask)[0]
        + sum(adapt(a, layer, h) for a in encoder.adapters if a.parallel_to == 'attn')
    )
    h = block.ln_2(tokens)
    return (
        tokens
        + block.mlp(h)
        + sum(adapt(a, layer, h) for a in encoder.adapters if a.parallel_to == 'ffn')
    )


def adapt(adapter, layer, x):
    """(Table 1) FC, nonlinearity, FC in parallel to a sublayer."""
    down, _, up = adapter.layers[layer - 1]
    return linear(up, linear(down, x).clamp(min=0))


def frame_layer(encoder, layer, tokens, prompts):
    """(Eq. 3) One layer on the tokens [1 + M x d] of one frame."""
    if prompts is None:
        return run_block(encoder, layer, tokens)
    p = len(prompts)
    out = run_block(encoder, layer, torch.cat([tokens[:1], prompts, tokens[1:]]))
    return torch.cat([out[:1], out[1 + p :]])


def video_layer(encoder, layer, frames, prompts):
    """(Sec. 3.3.3) One layer on all frames: [all CLS, prompts, patches]."""
    f, p = len(frames), 0 if prompts is None else len(prompts)
    parts = [torch.stack([frame[0] for frame in frames])]
    if p:
        parts.append(prompts)
    parts += [frame[1:] for frame in frames]
    out = run_block(encoder, layer, torch.cat(parts))
    patches = out[f + p :].chunk(f)
    return [torch.cat([out[i : i + 1], patches[i]]) for i in range(f)]


def encode_frames(encoder, video):
    """Frame embeddings [F x e] of one video [F x 3 x H x W]."""
    clip, f = encoder.backbone, len(video)
    tokens = []
    for frame in video:
        patches = clip.conv1(frame[None])[0].flatten(1).T
        x = torch.cat([clip.class_embedding[None], patches])
        tokens.append(clip.ln_pre(x + clip.positional_embedding))
    for layer in range(1, clip.transformer.layers + 1):
        if layer == encoder.spec.frame_layers + 1:
            table = encoder.frame_positional_embedding
            tokens = [x + table[int((i + 0.5) / f * len(table))] for i, x in enumerate(tokens)]
        cls = torch.stack([x[0] for x in tokens])
        if encoder.cls_update and layer <= encoder.spec.frame_layers:
            cls = cls + linear(encoder.cls_update.fc, cmm_states(encoder.cls_update.cmm, cls))
            tokens = [torch.cat([c[None], x[1:]]) for c, x in zip(cls, tokens)]
        prompts = prompt_tokens(encoder, layer, f, cls)
        if layer == 1:
            prompts = [None if p is None else clip.ln_pre(p) for p in prompts]
        if layer <= encoder.spec.frame_layers:
            tokens = [frame_layer(encoder, layer, x, p) for x, p in zip(tokens, prompts)]
        else:
            tokens = video_layer(encoder, layer, tokens, prompts[0])
    return torch.stack([clip.ln_post(x)[0] @ clip.proj for x in tokens])


def encode_caption(encoder, ids):
    """Embedding [e] of one caption, token ids [77], zeros behind [EOT]."""
    clip = encoder.backbone
    first = prompt_tokens(encoder, 1, 1, None)[0]
    p = 0 if first is None else len(first)
    slots = clip.context_length - p
    end = int(ids.argmax())
    if end >= slots:  # cut, and closed with [EOT] in the last slot
        ids = torch.cat([ids[: slots - 1], ids[end : end + 1]])
        end = slots - 1
    ids = ids[:slots]
    words = clip.token_embedding.weight[ids]
    for layer in range(1, clip.transformer.layers + 1):
        prompts = prompt_tokens(encoder, layer, 1, None)[0]
        if prompts is None:
            prompts = words[:0]
        x = torch.cat([words[:1], prompts, words[1:]])
        if layer == 1:
            x = x + clip.positional_embedding[: len(x)]
        n = len(x)
        mask = torch.full((n, n), float('-inf')).triu(1)
        x = run_block(encoder, layer, x, mask)
        words = torch.cat([x[:1], x[1 + len(prompts) :]])
    return clip.ln_final(words)[end] @ clip.text_projection
