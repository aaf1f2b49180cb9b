"""What a run would take: hours, money, requests and memory, before anything is started.

dataset    what there is: extent, tiles, bytes
rates      how fast each stage is, measured or derived, as ranges
prices     what a fleet and a bucket cost, dated
stage      the stages of a job, built in a dry run on inputs that have no voxels
job        the same of one job, on the workers that it asks for
work       what a stage has to do, in units that rates count
estimate   wall time, cost and the limit that binds, for the best, the typical and the worst case
limits     what would break first
ledger     the ledger under millions of blocks, measured
page       tables, the Markdown page and its figure
"""
