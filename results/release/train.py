"""Trains the ensemble of `results/release/digits/`: the example of README, at a fixed seed.

`make release` runs it: about 25 seconds on an idle core.
"""

from pathlib import Path

from sklearn.datasets import load_digits

from edgenes import EdgeNES

digits = load_digits()
images = (digits.images * 15).astype("uint8")
model = EdgeNES(members=3, candidates=6, search_steps=64, epochs=8, seed=0, device="cpu")
model.fit(images[:1500], digits.target[:1500])
print(f"accuracy on the other images: {model.score(images[1500:], digits.target[1500:]):.3f}")
print(f"wrote {model.save(Path(__file__).parent / 'digits')}")
