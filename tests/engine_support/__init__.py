"""What engine tests share: a stepwise harness, tiny architectures, adapters saved by peft."""
