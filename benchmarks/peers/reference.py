"""What a checkpoint says in torch about held-out text, for the quality column (in the project's environment).

    python reference.py CHECKPOINT TEXTS OUT

TEXTS is a texts.json of the build's corpus stage. Writes OUT, an .npz: "tokens" [windows, 256] and "logprobs"
float32 [windows, 256, vocabulary].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WINDOWS, LENGTH = 6, 256


def main() -> None:
    """The command line."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer

    from minigpt_edge.models.checkpoint import load_model

    source, texts, out = (Path(argument) for argument in sys.argv[1:])
    content = json.loads(texts.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    start = tokenizer.token_to_id(content["document_start"])
    encoded = ([start, *tokenizer.encode(window["text"]).ids] for window in content["windows"])
    tokens = [ids[:LENGTH] for ids in encoded if len(ids) >= LENGTH][:WINDOWS]
    model = load_model(source)
    with torch.inference_mode():
        logits = model(torch.tensor(tokens)).logits
        logprobs = torch.log_softmax(logits, -1).numpy()
    np.savez(out, tokens=np.array(tokens, np.int64), logprobs=logprobs)


if __name__ == "__main__":
    main()
