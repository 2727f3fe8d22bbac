"""InstructBLIP's checkpoints: those of transformers, and LAVIS's."""
