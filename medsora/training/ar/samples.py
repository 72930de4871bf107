"""The dataset of EndoGen's training: codes and labels, read by number."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from medsora.config.schema import Config
from medsora.data.clips import ClipDataset
from medsora.training.batches import label_of_sample
from medsora.training.cache.codes import CodeCache
from medsora.training.schedule import SampleKey


class CodeSamples(Dataset):
    """Items by `SampleKey`: `codes` (N,), `label` (the number of labels where it is dropped), `name`."""

    def __init__(self, config: Config, clips: ClipDataset, cache: CodeCache) -> None:
        self.config, self.clips, self.cache = config, clips, cache

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        _, window = self.clips.windows[key.index]
        choice = self.clips.choose(key.epoch, key.index, start=window.start, images=())
        label = label_of_sample(self.clips, key, self.config.run.seed, self.config.train_ar.label_dropout)
        codes = self.cache.get(key.index, choice.flipped)
        return {"sample": key.number, "name": self.clips.name(choice), "codes": codes, "label": label}

    @staticmethod
    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack a micro-batch's items."""
        return {
            "name": [item["name"] for item in items],
            "codes": torch.stack([item["codes"] for item in items]),
            "label": torch.tensor([item["label"] for item in items]),
        }
