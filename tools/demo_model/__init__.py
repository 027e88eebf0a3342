"""The parts of ``tools/train_demo_model.py``: facts, corpus, tokenizer, network, training and scoring."""
