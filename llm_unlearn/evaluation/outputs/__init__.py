"""The only code that runs a model for evaluation, one module per kind of pass.

- `scoring`: what the model thinks of given answers, teacher-forced;
- `generation`: what it answers by itself, greedily;
- `sampling`: what it answers or writes when tokens are drawn from its own distribution;
- `continuations`: how it goes on from inside an answer, for extraction likelihood;
- `gradients`: how strongly an answer pulls at the weights, for the gradient-norm attack.

All share `sharding`: batches are formed from the whole list before anything is dealt to processes, and each pass ends
with one collective.
"""
