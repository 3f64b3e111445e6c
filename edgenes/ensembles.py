import itertools, numpy as np
from types import SimpleNamespace
def select(probs, labels, n, rule="exhaustive", criterion="nll", beam_width=8):
    p=np.asarray(probs,dtype=np.float32); y=np.asarray(labels); r=np.arange(len(y)); best=None
    for c in itertools.combinations(range(len(p)),n):
        m=p[list(c)].mean(0); s=100*(m.argmax(1)==y).mean() if criterion=="accuracy" else np.log(np.maximum(m[r,y],1e-7)).mean()
        if best is None or s>best[0]: best=(s,c)
    return SimpleNamespace(members=best[1])
