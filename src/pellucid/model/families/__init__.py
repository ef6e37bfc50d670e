"""The families of models, one file each. No code outside this folder knows a family's name.

bert.py     BERT, as sentence encoder
gemma3.py   Gemma 3, text
llama.py    Llama
qwen2.py    Qwen 2 and 2.5
"""
