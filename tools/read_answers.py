"""How many questions a model answers rightly when it reads captions instead of seeing the videos.

    python tools/read_answers.py MODEL QUESTIONS ROWS...

MODEL reads `{caption} question: … answer:`, as it does for the reward `answers`. ROWS are files of captions from
`vb2 evaluate`; the answers from no caption and from the first human caption of each video are shown beside them.
Brackets: 95 % intervals, videos resampled; the difference is from the first file.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from videoblip2.captions import paired_bootstrap
from videoblip2.captions.functions import answer_accuracy
from videoblip2.captions.predictions import read_rows
from videoblip2.config import Decoding
from videoblip2.data.annotations import Question, read_questions
from videoblip2.model import decode
from videoblip2.predict import load_captioner


@torch.inference_mode()
def read(captioner, texts: Mapping[str, str], asked: Sequence[Question], batch: int = 128) -> list[str]:
    """The answer to each question from the text of its video."""
    text, answers = captioner.model.text, []
    prompts = [f"{texts[each.video_id]} {each.prompt}".lstrip() for each in asked]
    for start in range(0, len(prompts), batch):
        pieces = captioner.tokenizers.prompts(prompts[start : start + batch])
        mask = pieces["prompt_mask"].to(captioner.model.device)
        states = text.encode(text.embed(pieces["prompt_ids"].to(mask.device)), mask)
        answers += captioner.tokenizers.texts(decode.generate(text, (states, mask), Decoding(max_new_tokens=12))[0].ids)
    return answers


def main(model: str, questions: str, *files: str) -> None:
    captioner, rows = load_captioner(model, "cpu"), {file: read_rows(Path(file), "captions") for file in files}
    first = next(iter(rows.values()))
    said = {file: {row.video_id: row.text for row in each} for file, each in rows.items()}
    said["no caption"] = {row.video_id: "" for row in first}
    said["a person's caption"] = {row.video_id: row.references[0] for row in first}
    asked, base = [each for each in read_questions(questions) if each.video_id in said["no caption"]], None
    for name, texts in said.items():
        given = read(captioner, texts, asked)
        scores = answer_accuracy([q.question for q in asked], given, [q.answer for q in asked])
        shares: dict[str, list[float]] = {}
        for each, answer in zip(asked, given, strict=True):
            shares.setdefault(each.video_id, []).append(float(answer == each.answer))
        own = np.array([np.mean(hits) for hits in shares.values()])
        base = own if base is None else base
        value, low, high, _ = 100 * np.array(paired_bootstrap(own, base))
        kinds = ", ".join(f"{kind} {100 * score:.1f}" for kind, score in scores.items())
        print(f"{name}: {kinds}; minus the first {value:+.1f} [{low:.1f}, {high:.1f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
