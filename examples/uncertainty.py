# %% [markdown]
# # Uncertainty that can be used
#
#     python examples/uncertainty.py
#
# Twelve samples of a posterior over the weights of a small network on handwritten digits. What their average is worth: a
# risk–coverage curve (how wrong is what it keeps, if it may refuse the rest?), the most doubtful images, and letters that
# no digit is like. Needs the extra `train`.

# %%
import torch
from torch.nn.functional import cross_entropy

import bayesprune as bp
from bayesprune import vision
from bayesprune.demo.letters import letter_images
from bayesprune.posterior import risk_coverage

torch.manual_seed(0)
data = vision.load_digits(fold=0)
loader, test = data.loader("train", batch_size=64), data.loader("test", batch_size=256)
model = vision.small_cnn(num_classes=10, in_channels=1, width=24)

# %% [markdown]
# ## Sample
#
# Three cosine cycles, four samples at the cold end of each. A cycle's restart takes the chain to another part of the
# posterior, so that the members differ.

# %%
epochs = 18
optimizer = bp.CVAdam(model.parameters(), lr=3e-3, num_data=data.count("train"), temperature=0.01)
clock = bp.CycleClock(total_steps=epochs * len(loader), cycles=3, samples_per_cycle=4, sample_every=8, floor=0.1)
scheduler = bp.CyclicalLR(optimizer, clock)
samples = bp.MemorySamples()
for step, (x, y) in enumerate(batch for _ in range(epochs) for batch in loader):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
    scheduler.step()
    if clock.collect(step):
        samples.collect(model, optimizer, step=step)

prediction = bp.predict(model, samples, test, keep_members=True)
labels = prediction.labels
print(prediction)
print(
    "average of all:", {k: round(v, 4) for k, v in bp.classification_metrics(prediction.probabilities, labels).items()}
)
single = prediction.members[-1]
print("last member:   ", {k: round(v, 4) for k, v in bp.classification_metrics(single, labels).items()})

# %% [markdown]
# ## Risk and coverage
#
# Keep the surest share of the images and count the errors among them. A curve that falls to zero means that the errors are
# among the images the model doubts.

# %%
curve = risk_coverage(prediction.total, prediction.classes != labels)
for share in (0.5, 0.8, 0.9, 1.0):
    print(f"keep {share:4.0%}: {curve.risk_at(share):.2%} of them wrong")
print(f"area under the curve {curve.area:.5f}; of a perfect order {curve.least_area:.5f}")

# %% [markdown]
# ## The most doubtful images, and inputs that are no digits
#
# Epistemic uncertainty is what the members disagree on; aleatoric is what each of them doubts by itself.

# %%
doubtful = prediction.total.argsort(descending=True)[:5]
for i in doubtful.tolist():
    told = f"total {prediction.total[i]:.2f}, epistemic {prediction.epistemic[i]:.2f}"
    print(f"image {i}: said {prediction.classes[i]}, is {labels[i]} ({told})")

letters = (letter_images().float() / data.scale - data.mean[0]) / data.std[0]
strange = bp.predict(model, samples, letters)
for name in ("total", "epistemic"):
    found = bp.ood_metrics(getattr(prediction, name), getattr(strange, name))
    print(f"letters against digits by {name}: AUROC {found['auroc']:.3f}, letters accepted {found['fpr95']:.1%}")

# %% [markdown]
# Is this a posterior at all? Read what the health report says of the temperature before calling it one.

# %%
print(bp.health_report(optimizer=optimizer, samples=samples, prediction=prediction))
