"""Golden of the demo model by Hugging Face transformers, f32 on the f16-rounded weights."""
import json,sys,torch
from transformers import LlamaForCausalLM, LlamaConfig
folder,prompt_file,out=sys.argv[1:4]
torch.set_num_threads(1)
vocab=json.load(open(folder+"/vocab.json"))
words=[(w,i) for i,w in enumerate(vocab) if 257<=i and not w.startswith("<unused")]
def enc(t):
    o=[];i=0
    while i<len(t):
        best=max((w for w in words if t.startswith(w[0],i)),key=lambda w:len(w[0]),default=None)
        if best: o.append(best[1]); i+=len(best[0])
        else: o+=list(t[i].encode()); i+=1
    return o
def dec(ids): return b"".join(vocab[i].encode() if i>=257 else (bytes([i]) if i<256 else b"") for i in ids).decode()
text=open(prompt_file).read()
ids=[256]+enc(text)
m=LlamaForCausalLM.from_pretrained(folder,dtype=torch.float32,attn_implementation="eager"); m.eval()
with torch.no_grad():
    o=m(torch.tensor([ids]),output_attentions=True)
    lg=o.logits[0,-1]; tp=lg.topk(10)
    rows={str(l):[[round(x,6) for x in h] for h in o.attentions[l][0,:,-1].tolist()] for l in range(len(o.attentions))}
    past=m(torch.tensor([ids]),use_cache=True); cache=past.past_key_values; l=past.logits[0,-1]; gen=[];gap=[]
    for i in range(128):
        l[torch.tensor([k for k,w in enumerate(vocab) if w.startswith("<unused")])]=-1e9
        t2=l.topk(2); gap.append((t2.values[0]-t2.values[1]).item()); t=int(l.argmax()); gen.append(t)
        r=m(torch.tensor([[t]]),past_key_values=cache,use_cache=True); cache=r.past_key_values; l=r.logits[0,-1].clone()
json.dump(dict(note="Hugging Face transformers, eager attention, f32 arithmetic on the f16-rounded weights; ids include BOS; attention rows are those of the last prompt token, [head][position]",prompt_text=text,prompt_ids=ids,expected_key=sys.argv[4],greedy_ids=gen,greedy_text=dec(gen),smallest_top1_top2_logit_gap=min(gap),last_logits_top10=[[i,round(v,5)] for v,i in zip(tp.values.tolist(),tp.indices.tolist())],last_row_attention=rows),open(out,"w"))
print(dec(gen)[:200],min(gap))
