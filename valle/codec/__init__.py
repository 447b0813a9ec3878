"""What makes a codec and what judges one: losses, quantizer, discriminator, measures.

The loop is in `egs/atepp/bin/trainer_codec.py`; the door to a finished codec is `valle.data.codec`.
"""
