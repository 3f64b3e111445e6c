"""Trains the ensemble of `results/release/digits/`: the example of README, at a fixed seed.

`make release` runs it, and writes what README says of it into `measured.json`.
"""

import time
from pathlib import Path

from sklearn.datasets import load_digits

from edgenes import EdgeNES
from edgenes.core import write_json

HERE = Path(__file__).parent

digits = load_digits()
images = (digits.images * 255 / 16).round().astype("uint8")
model = EdgeNES(members=3, candidates=6, search_steps=64, epochs=16, seed=0, device="cpu")
start = time.process_time()
model.fit(images[:1500], digits.target[:1500])
measured = {
    "processor_seconds": round(time.process_time() - start),
    "test_accuracy": model.score(images[1500:], digits.target[1500:]),
    "test_images": len(images[1500:]),
}
print(f"wrote {model.save(HERE / 'digits')}")
print(f"wrote {write_json(HERE / 'measured.json', measured)}: {measured}")
