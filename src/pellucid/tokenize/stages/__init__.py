"""The stages in Python, except the model (``kinds/``), in the order of an encoding.

added_tokens.py           finds added tokens
normalize.py              text → text
precompiled_charsmap.py   the normalizers of SentencePiece models
pretokenize.py            text → pre-tokens
postprocess.py            ids → ids with special tokens
decode.py                 ids → text
decode_steps.py           the steps of a tokenizer.json's decoder
step_decoder.py           the decoder that runs these steps in any order
aligned.py                text that tracks its origin, for offsets
"""
