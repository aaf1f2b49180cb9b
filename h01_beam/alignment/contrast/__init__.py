"""Grey levels of aligned sections: the volume `even` beside `image`, which keeps the raw ones.

blocks.py   what the stages do with one block: arrays and rows in, arrays and rows out
regions.py  which sections and which tissue they read
stage.py    the stages
"""
