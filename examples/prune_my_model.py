# %% [markdown]
# # Prune a model of your own
#
#     python examples/prune_my_model.py
#
# A residual network written for this page, scikit-learn's handwritten digits, torch's own DataLoader. Four lines are the
# library's: the optimizer, the clock, the pruner, and `compact` at the end. Needs the extra `train`.

# %%
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import bayesprune as bp

torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.second_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.second_norm(self.second(inner)))


model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), Block(32), nn.MaxPool2d(2), Block(32), nn.AdaptiveAvgPool2d(1),
    nn.Flatten(), nn.Linear(32, 10),
)  # fmt: skip

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
y = torch.tensor(labels)
train_rows, test_rows = train_test_split(range(len(y)), test_size=500, stratify=labels, random_state=0)
loader = DataLoader(TensorDataset(x[train_rows], y[train_rows]), batch_size=64, shuffle=True, drop_last=True)

# %% [markdown]
# ## Train and prune in one run
#
# `num_data` is the number of training examples behind the mean loss: it sets the size of the prior and of the noise. The
# clock knows how long the run is; the pruner's ramp is a share of it. `print(pruner)` says what will happen before it does.

# %%
epochs = 15
optimizer = bp.CVAdam(model.parameters(), lr=3e-3, num_data=len(train_rows), temperature=0.01)
clock = bp.CycleClock(total_steps=epochs * len(loader), samples_per_cycle=4, sample_every=10, floor=0.1)
scheduler = bp.CyclicalLR(optimizer, clock)
pruner = bp.ForwardPruning(model, optimizer, sparsity=0.8, clock=clock, example_input=x[:2])
samples = bp.MemorySamples()
print(pruner)

step = 0
for _ in range(epochs):
    for batch, targets in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(batch), targets).backward()
        optimizer.step()
        scheduler.step()
        if clock.collect(step):
            samples.collect(model, optimizer, step=step)
        step += 1

# %% [markdown]
# ## Make it small
#
# The pruned channels are removed; the small model's outputs are compared with the masked one's before it is returned. The
# samples follow it onto the small architecture and become one model that averages.

# %%
model.eval()
small = bp.compact(model, pruner, example_input=x[:2])
members = bp.Ensemble(small.model, [small.convert(sample) for sample in samples])
before, after = (sum(p.numel() for p in net.parameters()) for net in (model, small.model))
with torch.no_grad():
    last = (small.model(x[test_rows]).argmax(1) == y[test_rows]).float().mean()
prediction = members.predict(x[test_rows])
averaged = (prediction.classes == y[test_rows]).double().mean()
print(small.report)
print(
    f"{before:,} parameters -> {after:,}; right on the test images: last {last:.1%}, {len(members)} averaged {averaged:.1%}"
)

# %% [markdown]
# `bp.save(members, "folder", example_input=x[:2], dense=model)` writes a folder that `bp.load` reads without this file and
# without pickle; `bp.profile("folder")` times dense beside compact.
