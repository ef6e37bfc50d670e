"""Activation datasets: the values of points for all tokens of a corpus, in a folder of shards.

columns.py             the columns of a dataset: points, and the texts, positions and ids of the tokens
survey.py              the texts of a corpus as token ids, and their division into shards
shard_file.py          a shard on disk: its layout, and a writer that takes rows in any order
parquet_shard.py       a shard as a Parquet file
index.py               the index of a dataset, its hash, and the shards of an interrupted run
options.py             the options of a dataset, and the progress of its recording
shard_recorder.py      runs texts through a model, and writes their values to shards
recorder.py            divides a corpus into shards, and records the missing shards
row_array.py           the rows of a column in all shards, as one array
activation_dataset.py  reads a dataset: arrays, shuffled batches
torch_rows.py          the rows of a dataset for PyTorch
"""
