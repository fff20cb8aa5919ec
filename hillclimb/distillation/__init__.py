"""Self-distillation and consolidation: traces, and fine-tuning on them (report §3.1.4, §3.5)."""
