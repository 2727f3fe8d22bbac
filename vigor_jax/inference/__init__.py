"""From weights to text: prefill, decoding, sampling, answers kept on disk."""
