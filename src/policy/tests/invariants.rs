//! What every rule of the registry and every composition promises, over random shapes.

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::event::Position;
use crate::policy::registry::{of_kind, wrappers};
use crate::policy::*;

const HEAD_DIM: usize = 4;
const BLOCK_SIZE: u32 = 4;

/// Small values of a parameter, so that limits are met.
fn spelled(param: &'static Param) -> BoxedStrategy<String> {
    match (param.short(), param.kind) {
        ("budget", _) => {
            prop_oneof![(1u32..80).prop_map(|n| n.to_string()), (1u32..=100).prop_map(|p| format!("{p}%"))]
                .boxed()
        }
        (_, ParamKind::Int { min, max }) => (min..=max.min(9)).prop_map(|n| n.to_string()).boxed(),
        (_, ParamKind::Real { min, max }) => (min..=max.min(2.0)).prop_map(|x| x.to_string()).boxed(),
        (_, ParamKind::Bool) => any::<bool>().prop_map(|b| b.to_string()).boxed(),
        (_, ParamKind::Choice(words)) => prop::sample::select(words).prop_map(str::to_owned).boxed(),
        (_, ParamKind::Budget) => unreachable!("the budget is called budget"),
    }
}

fn part(entry: &'static Entry) -> impl Strategy<Value = String> {
    let params: Vec<_> = entry.params.iter().map(spelled).collect();
    params.prop_map(move |values| {
        let given: Vec<_> = entry
            .params
            .iter()
            .zip(values)
            .map(|(param, value)| format!("{}={value}", param.short()))
            .collect();
        if given.is_empty() { entry.name.to_owned() } else { format!("{}:{}", entry.name, given.join(",")) }
    })
}

/// Any rule, with any wrappers that it takes.
fn any_policy() -> impl Strategy<Value = Policy> {
    let base = prop::sample::select(of_kind(Kind::Evict).collect::<Vec<_>>()).prop_flat_map(part);
    let wrapped: Vec<_> = wrappers().map(|entry| (part(entry), any::<bool>())).collect();
    (base, wrapped).prop_map(|(base, wrapped)| {
        let mut policy = parse_policy(&base).unwrap();
        for (wrapper, wanted) in wrapped {
            if wanted && let Ok(composed) = parse_policy(&format!("{policy}+{wrapper}")) {
                policy = composed;
            }
        }
        policy
    })
}

#[derive(Clone, Debug)]
struct Case {
    policy: Policy,
    kv_heads: usize,
    group: usize,
    chunks: Vec<u32>,
    question: u32,
    tokens: u32,
    layers: u16,
    seed: u64,
}

fn any_case() -> impl Strategy<Value = Case> {
    let heads = (1..=8usize).prop_flat_map(|group| (1..=64 / group, Just(group)));
    let run = (prop::collection::vec(1u32..24, 1..5), 0u32..6, 0u32..12);
    (any_policy(), heads, run, 1u16..6, any::<u64>()).prop_map(
        |(policy, (kv_heads, group), (chunks, question, tokens), layers, seed)| Case {
            policy,
            kv_heads,
            group,
            chunks,
            question,
            tokens,
            layers,
            seed,
        },
    )
}

impl Case {
    fn span_len(&self) -> u32 {
        self.chunks.iter().sum()
    }

    fn prompt_len(&self) -> u32 {
        self.span_len() + self.question
    }

    /// Everything that is fed, as (tokens, moment).
    fn feeds(&self) -> Vec<(u32, When)> {
        let mut feeds: Vec<_> = self.chunks.iter().map(|&fed| (fed, When::Chunk)).collect();
        feeds.last_mut().expect("a prompt has a chunk").1 = When::EndOfPrompt;
        feeds.extend((self.question > 0).then_some((self.question, When::Chunk)));
        feeds.extend((0..self.tokens).map(|_| (1, When::Token)));
        feeds
    }
}

/// One layer of a run, as an engine keeps it.
struct Layer<'a> {
    case: &'a Case,
    index: u16,
    rng: ChaCha8Rng,
    residents: Vec<Vec<Position>>,
    accs: Vec<Accumulators>,
    keys: Vec<Vec<f32>>,
    queries: Vec<QueryMoments>,
    classes: Vec<TokenClass>,
    next: Position,
}

impl<'a> Layer<'a> {
    fn new(case: &'a Case, layer: u16) -> Self {
        let site = |h: usize| Site {
            seed: case.seed,
            layer,
            head: h as u16,
            span_len: case.span_len(),
            prompt_len: case.prompt_len(),
        };
        Self {
            case,
            index: layer,
            rng: ChaCha8Rng::seed_from_u64(case.seed ^ u64::from(layer)),
            residents: vec![Vec::new(); case.kv_heads],
            accs: (0..case.kv_heads).map(|h| Accumulators::at(case.policy.needs(), site(h))).collect(),
            keys: vec![Vec::new(); case.kv_heads],
            queries: vec![QueryMoments::default(); case.kv_heads * case.group],
            classes: Vec::new(),
            next: 0,
        }
    }

    fn vector(&mut self) -> Vec<f32> {
        (0..HEAD_DIM).map(|_| self.rng.random_range(-2.0..2.0)).collect()
    }

    /// Feeds one token: K and V, a query per head, and its row over the residents.
    fn feed(&mut self) {
        for h in 0..self.case.kv_heads {
            let key = self.vector();
            self.keys[h].extend(key);
            self.residents[h].push(self.next);
            let mut row: Vec<f32> =
                (0..self.residents[h].len()).map(|_| self.rng.random_range(0.0f32..1.0).powi(4)).collect();
            let total: f32 = row.iter().sum();
            for p in &mut row {
                *p /= total;
            }
            if self.rng.random_bool(0.02) {
                row[0] = f32::NAN;
            }
            self.accs[h].observe_decode(&self.residents[h], &row);
        }
        for i in 0..self.queries.len() {
            let query = self.vector();
            self.queries[i].observe(&query);
        }
        let class = [TokenClass::Plain, TokenClass::Plain, TokenClass::Punctuation, TokenClass::Special];
        self.classes.push(class[self.rng.random_range(0..4)]);
        self.next += 1;
    }

    fn moment(&self, when: When) -> Moment {
        Moment {
            when,
            layer: self.index,
            layers: self.case.layers,
            prompt_len: self.case.prompt_len(),
            span_len: self.case.span_len(),
            next_position: self.next,
            block_size: BLOCK_SIZE,
            step: 0,
            share: None,
            seed: self.case.seed,
        }
    }

    fn decide(&self, when: When) -> Vec<Verdict> {
        let rows = |h: usize| -> Vec<f32> {
            let row = |p: &Position| self.keys[h][*p as usize * HEAD_DIM..][..HEAD_DIM].to_vec();
            self.residents[h].iter().flat_map(row).collect()
        };
        let rows: Vec<_> = (0..self.case.kv_heads).map(rows).collect();
        let heads: Vec<_> = (0..self.case.kv_heads)
            .map(|h| HeadInputs {
                keys: &rows[h],
                values: &rows[h],
                classes: &self.classes,
                queries: &self.queries[h * self.case.group..][..self.case.group],
                frequencies: &[1.0, 0.1],
                ..HeadInputs::new(&self.residents[h], &self.accs[h])
            })
            .collect();
        let mut out = Vec::new();
        self.case.policy.decide(&self.moment(when), &heads, &mut out);
        out
    }

    fn check(&self, verdicts: &[Verdict], when: When) {
        let whole = verdicts.iter().filter(|v| v.head.is_none()).count();
        assert!(whole == 0 || verdicts.len() == 1, "one for the layer, or one per head");
        assert!(verdicts.is_sorted_by(|a, b| a.head < b.head), "heads ascend");
        assert!(verdicts.is_empty() || self.case.policy.acts(when));
        let most = self.residents.iter().map(Vec::len).max().unwrap_or(0) as u32;
        assert!(verdicts.is_empty() || !self.case.policy.rests(&self.moment(when), most));
        for verdict in verdicts {
            for h in self.covered(verdict) {
                let residents = &self.residents[h];
                assert!(!verdict.victims.is_empty());
                assert!(verdict.victims.is_sorted_by(|a, b| a < b));
                assert!(verdict.victims.iter().all(|p| residents.binary_search(p).is_ok()));
                assert_eq!(residents.len() - verdict.victims.len(), verdict.kept as usize);
            }
            assert_eq!(verdict.cutoff.is_some(), !verdict.scores.is_empty());
            if let Some(cutoff) = verdict.cutoff {
                assert_eq!(verdict.scores.len(), verdict.victims.len());
                assert!(verdict.scores.iter().all(|&s| s <= cutoff), "{verdict:?}");
            }
            if let Some(crush) = &verdict.crush {
                assert!(crush.is_sound(), "{crush:?}");
                assert_eq!(crush.layer, self.index);
            }
        }
    }

    fn covered(&self, verdict: &Verdict) -> std::ops::Range<usize> {
        verdict.head.map_or(0..self.residents.len(), |h| usize::from(h)..usize::from(h) + 1)
    }

    /// Victims that the rule says it protects: first tokens, and the newest.
    fn check_protected(&self, verdict: &Verdict, slots: u32) {
        let spec = self.case.policy.spec();
        let int = |name| match spec.get(name) {
            Some(Value::Int(n)) => n,
            Some(Value::Real(share)) => (share * f64::from(slots)).round() as u32,
            _ => 0,
        };
        let sinks = int("sinks");
        let recent = match spec.entry().name {
            "h2o" | "keyformer" | "scissorhands" => int("recent"),
            "snapkv" | "nacl" => int("window"),
            "roco" => int("newest"),
            "streaming" | "lm-infinite" => slots.saturating_sub(sinks),
            _ => 0,
        };
        // A rule of whose budget a part is lost at once may protect more than it keeps then.
        if sinks + recent > verdict.kept {
            return;
        }
        for h in self.covered(verdict) {
            let residents = &self.residents[h];
            let newest = &residents[residents.len() - recent as usize..];
            for p in &verdict.victims {
                assert!(*p >= sinks, "sink {p} was lost");
                assert!(newest.binary_search(p).is_err(), "recent {p} was lost");
            }
        }
    }

    fn carry_out(&mut self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            for h in self.covered(verdict) {
                self.residents[h].retain(|p| verdict.victims.binary_search(p).is_err());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn residents_stay_within_the_bound_and_the_protected_stay(case in any_case()) {
        if case.policy.check(case.prompt_len()).is_err() {
            return Ok(());
        }
        let mut layer = Layer::new(&case, case.layers / 2);
        for (fed, when) in case.feeds() {
            (0..fed).for_each(|_| layer.feed());
            let verdicts = layer.decide(when);
            prop_assert_eq!(format!("{verdicts:?}"), format!("{:?}", layer.decide(when)));
            layer.check(&verdicts, when);
            let slots = case.policy.slots(case.prompt_len());
            for verdict in &verdicts {
                if let Some(slots) = slots {
                    layer.check_protected(verdict, slots);
                }
            }
            layer.carry_out(&verdicts);
            let bound = case.policy.bound(&layer.moment(when), case.kv_heads as u32);
            if let Some(bound) = bound.filter(|_| case.policy.acts(when)) {
                let counts: Vec<_> = layer.residents.iter().map(Vec::len).collect();
                prop_assert!(counts.iter().all(|&n| n as u32 <= bound.per_head), "{counts:?} {bound:?}");
                prop_assert!(counts.iter().sum::<usize>() as u64 <= bound.per_layer, "{counts:?} {bound:?}");
            }
        }
    }

    #[test]
    fn a_budget_for_everything_is_the_full_cache(case in any_case()) {
        let mut case = case;
        if case.policy.spec().get("budget").is_some() {
            case.policy.set("budget", "1000").unwrap();
        }
        // FastGen's mix loses what it does not name, budget or no budget.
        prop_assume!(case.policy.entry().name != "fastgen");
        let mut layer = Layer::new(&case, 0);
        for (fed, when) in case.feeds() {
            (0..fed).for_each(|_| layer.feed());
            prop_assert_eq!(layer.decide(when), vec![]);
        }
    }
}

#[test]
fn noise_depends_on_its_place_and_not_on_the_chunks() {
    let policy = parse_policy("keyformer:budget=9").unwrap();
    let site = Site { seed: 9, layer: 1, head: 2, span_len: 8, prompt_len: 8 };
    let rows: Vec<Vec<f32>> = (1..=8).map(|n| vec![1.0 / n as f32; n]).collect();
    let run = |whole: bool| {
        let mut acc = Accumulators::at(policy.needs(), site);
        for (q, row) in rows.iter().enumerate() {
            let positions: Vec<Position> = (0..=q as Position).collect();
            if whole {
                acc.observe_row(q as Position, &positions, row);
            } else {
                acc.observe_decode(&positions, row);
            }
        }
        (0..8).map(|p| acc.noisy(p).to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(run(true), run(false));
}
