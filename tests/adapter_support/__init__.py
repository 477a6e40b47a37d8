"""What the tests of `adapters/` share: PEFT directories, hand-made files, a device that is not."""
