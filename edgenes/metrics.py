import numpy as np
def ensemble_metrics(probs, labels):
    p=np.asarray(probs,dtype=np.float32); y=np.asarray(labels); mean=p.mean(0); r=np.arange(len(y)); eps=np.finfo(np.float32).eps
    true=p[:,r,y]; pred=p.argmax(2); M=len(p); conf=mean.max(1); ok=mean.argmax(1)==y
    b=np.minimum((conf*15).astype(int),14); ece=sum(abs(ok[b==i].mean()-conf[b==i].mean())*(b==i).mean() for i in range(15) if (b==i).any())
    dis=[float((pred[i]!=pred[j]).mean()) for i in range(M) for j in range(i)]
    onehot=np.eye(p.shape[2],dtype=np.float32)[y]
    return {"members":M,"accuracy_percent":100*float(ok.mean()),"nll_nats":float(-np.log(np.maximum(mean[r,y],eps)).mean()),"brier":float(((mean-onehot)**2).sum(1).mean()),"ece":float(ece),"oracle_nll_nats":float(-np.log(np.maximum(true.max(0),eps)).mean()),"disagreement":float(np.mean(dis)) if dis else 0.0}
