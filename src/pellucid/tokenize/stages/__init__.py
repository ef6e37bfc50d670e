"""The stages in Python, except the model (``kinds/``), in the order in which they run.

added.py                  added tokens are found
normalize.py              text → text
precompiled_charsmap.py   the normalizers of SentencePiece models
pretokenize.py            text → pre-tokens
postprocess.py            ids → ids with special tokens
decode.py                 ids → text
decode_steps.py           the steps of a tokenizer.json's decoder
step_decoder.py           the decoder that runs them in any order
aligned.py                text that tracks its origin, for offsets
"""
