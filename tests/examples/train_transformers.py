"""transformers' Trainer on an NPU: a tiny, random GPT-2 learns to count. Nothing is downloaded. Prints one JSON line.

python train_transformers.py OUTPUT_FOLDER
"""

import json
import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0,
                                   eos_token_id=0))  # fmt: skip
rows = [torch.arange(start, start + 16) % 32 for start in range(32)]
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=sys.argv[1],
        max_steps=30,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        bf16=True,
        logging_steps=10,
        save_steps=30,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    ),
    train_dataset=[{"input_ids": row, "labels": row} for row in rows],
)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
prompt = torch.tensor([[3, 4, 5, 6]]).to(trainer.args.device)
answer = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
print(
    json.dumps(
        {"device": str(trainer.args.device), "losses": losses, "answer": [int(token) for token in answer[0]]}
    ),
    flush=True,
)
