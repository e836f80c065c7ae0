"""Variational Best-of-N alignment (vBoN), BoNBoN and the methods that they are compared with.

config      every configuration key, once          types, files  records, errors, artifacts
functional  the mathematics: arrays in and out     models        networks, Hugging Face folders
data        rows, prompts, pairs, batches          sampling      sampler, rewards, reference cache
training    methods, one loop, one step, budgets   evaluation    distances to Best-of-N, judges
workdir     the files of a working directory       study         the runs that share one
report      tables, figures and the page           exact         the lab without sampling
"""

__version__ = "0.1.0"
