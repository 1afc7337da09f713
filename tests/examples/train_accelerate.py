"""accelerate on an NPU: nothing here names the device, accelerate finds it. Prints one JSON line per process.

accelerate launch --num_processes 2 --mixed_precision bf16 train_accelerate.py
"""

import json

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader, TensorDataset

set_seed(0)
accelerator = Accelerator()
inputs = torch.randn(64, 8)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = DataLoader(data, batch_size=16 // accelerator.num_processes, shuffle=False)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

losses = []
for _ in range(10):
    for batch, target in loader:
        with accelerator.autocast():
            loss = torch.nn.functional.mse_loss(model(batch), target)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), reduction="mean").item())
print(
    json.dumps(
        {
            "rank": accelerator.process_index,
            "processes": accelerator.num_processes,
            "device": str(accelerator.device),
            "backend": torch.distributed.get_backend() if accelerator.num_processes > 1 else None,
            "mixed_precision": accelerator.mixed_precision,
            "first": losses[0],
            "last": losses[-1],
            "weight": accelerator.unwrap_model(model)[0].weight.sum().item(),
        }
    ),
    flush=True,
)
accelerator.end_training()
