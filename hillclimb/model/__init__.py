"""MAI-Base-1 in Hugging Face form: configuration, model, tokenizer."""
