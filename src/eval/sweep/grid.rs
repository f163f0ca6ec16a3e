//! What a sweep compares: ways to keep the cache, as rows and columns.

use crate::cache::KvDtype;
use crate::eval::{Regime, Result, Span};
use crate::event::Settings;
use crate::policy::{Kind, parse_merge, parse_policy, parse_read, registry};

/// Budgets of a sweep where none are named.
pub const BUDGETS: [&str; 3] = ["50%", "25%", "12.5%"];
/// Read sets of the whole laboratory. The embedded model has four layers and short prompts: Quest leaves one dense layer in
/// place of two, InfLLM has a small window and small blocks.
const READS: [&str; 6] = [
    "kcache:n=8",
    "kcache:n=32",
    "kcache:n=64",
    "quest:budget=64,dense=1",
    "quest:budget=256,dense=1",
    "infllm:local=128,init=16,block=32,topk=4,cache=8",
];
/// Merge rules of the whole laboratory with the policies that they stand behind: CaM behind the sinks and window of its
/// source, both behind H2O, D2O's two halves together.
const MERGES: [(&str, &str); 5] =
    [("streaming", "cam"), ("h2o", "cam"), ("h2o", "d2o"), ("d2o", "d2o"), ("full", "minicache")];
/// What the wrappers stand behind in the whole laboratory.
const WRAPPED: [&str; 3] = ["h2o", "snapkv", "pyramidkv"];
/// KVCrush token by token, which its sources know beside pages.
const BY_TOKEN: [&str; 2] = ["h2o+kvcrush:group=1", "keydiff+kvcrush:group=1"];

/// What varies; an empty list is the one plain choice: `full`, nothing left unread, `f32` pages.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    /// Eviction policies, with or without parameters; `budgets` are put in.
    pub policies: Vec<String>,
    /// Budgets, as on the command line.
    pub budgets: Vec<String>,
    /// Page types.
    pub kv_dtypes: Vec<String>,
    /// Read sets.
    pub reads: Vec<String>,
    /// Merge rules.
    pub merges: Vec<String>,
    /// What is compressed before the answer is asked for.
    pub span: Span,
}

/// One way to keep the cache.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The row of the picture: everything but the budget.
    pub family: String,
    /// The budget, where the policy has one.
    pub budget: Option<String>,
    /// The whole.
    pub regime: Regime,
}

impl Grid {
    /// Whether nothing was named.
    pub const fn is_empty(&self) -> bool {
        self.policies.is_empty()
            && self.kv_dtypes.is_empty()
            && self.reads.is_empty()
            && self.merges.is_empty()
    }

    /// The ways to keep the cache, the full one first: every combination of what was named; of nothing, the whole
    /// laboratory: every policy, wrapper, page type and read set, each for itself.
    ///
    /// # Errors
    /// A name or a parameter that is wrong.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let plain = Keeping { policy: "full", read: "", kv_dtype: "f32", merge: "" };
        let mut cells = vec![self.cell(plain, None)?];
        if self.is_empty() {
            self.laboratory(&mut cells)?;
        } else {
            let or = |list: &[String], plain: &str| {
                if list.is_empty() { vec![plain.into()] } else { list.to_vec() }
            };
            let (reads, merges) = (or(&self.reads, ""), or(&self.merges, ""));
            let (dtypes, policies) = (or(&self.kv_dtypes, "f32"), or(&self.policies, "full"));
            for ((read, merge), kv_dtype) in product(product(reads.iter(), &merges), &dtypes) {
                for policy in &policies {
                    self.budgeted(&mut cells, Keeping { policy, read, kv_dtype, merge })?;
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        cells.retain(|cell| seen.insert(cell.regime.name.clone()));
        Ok(cells)
    }

    fn laboratory(&self, cells: &mut Vec<Cell>) -> Result<()> {
        let plain = Keeping { policy: "full", read: "", kv_dtype: "f32", merge: "" };
        let alone = registry::of_kind(Kind::Evict).map(|entry| entry.name.to_owned());
        let wrapped =
            registry::wrappers().flat_map(|wrapper| WRAPPED.map(|base| format!("{base}+{}", wrapper.name)));
        for policy in alone.chain(wrapped).chain(BY_TOKEN.map(str::to_owned)) {
            self.budgeted(cells, Keeping { policy: &policy, ..plain })?;
        }
        for (policy, merge) in MERGES {
            self.budgeted(cells, Keeping { policy, merge, ..plain })?;
        }
        for kv_dtype in KvDtype::NAMES {
            cells.push(self.cell(Keeping { kv_dtype, ..plain }, None)?);
        }
        for read in READS {
            cells.push(self.cell(Keeping { read, ..plain }, None)?);
        }
        Ok(())
    }

    /// A policy at every budget; once, where it has none.
    fn budgeted(&self, cells: &mut Vec<Cell>, keeping: Keeping<'_>) -> Result<()> {
        if parse_policy(keeping.policy)?.spec().budget().is_none() {
            cells.push(self.cell(keeping, None)?);
            return Ok(());
        }
        let usual = BUDGETS.map(str::to_owned);
        for budget in if self.budgets.is_empty() { &usual[..] } else { &self.budgets } {
            cells.push(self.cell(keeping, Some(budget))?);
        }
        Ok(())
    }

    fn cell(&self, keeping: Keeping<'_>, budget: Option<&str>) -> Result<Cell> {
        let Keeping { policy, read, kv_dtype, merge } = keeping;
        let mut spec = parse_policy(policy)?;
        if let Some(budget) = budget {
            spec.set("budget", budget)?;
        }
        if !read.is_empty() {
            parse_read(read)?;
        }
        if !merge.is_empty() {
            parse_merge(merge)?;
        }
        let merged = format!("merge {merge}");
        let is_plain = policy == "full" && (!read.is_empty() || !merge.is_empty() || kv_dtype != "f32");
        let parts = [
            (!is_plain).then_some(policy),
            (!read.is_empty()).then_some(read),
            (!merge.is_empty()).then_some(merged.as_str()),
            (kv_dtype != "f32").then_some(kv_dtype),
        ];
        let family = parts.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let regime = Regime {
            name: budget.map_or_else(|| family.clone(), |budget| format!("{family} {budget}")),
            policy: spec.to_string(),
            read: read.into(),
            merge: merge.into(),
            kv_dtype: kv_dtype.into(),
            span: self.span,
            chunk: WHOLE,
        };
        Ok(Cell { family, budget: budget.map(str::to_owned), regime })
    }
}

/// How the cache is kept, but for the budget.
#[derive(Clone, Copy)]
struct Keeping<'a> {
    policy: &'a str,
    read: &'a str,
    kv_dtype: &'a str,
    merge: &'a str,
}

/// Every one of the first with every one of the second.
fn product<A: Copy, B>(first: impl Iterator<Item = A>, second: &[B]) -> impl Iterator<Item = (A, &B)> {
    first.flat_map(move |a| second.iter().map(move |b| (a, b)))
}

/// The prompt as one chunk: policies decide at its end, where a fork is made.
const WHOLE: u32 = 65_536;

/// The settings of a regime, if a prompt of so many tokens can be run under them.
///
/// # Errors
/// Why not.
pub(super) fn fits(regime: &Regime, tokens: usize) -> std::result::Result<Settings, String> {
    let settings = regime.settings(1);
    parse_policy(&settings.policy)
        .and_then(|policy| policy.check(tokens as u32))
        .map_err(|error| error.to_string())?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_laboratory_has_every_policy_page_type_and_read_set() {
        let cells = Grid::default().cells().unwrap();
        let has = |name: &str| cells.iter().filter(|cell| cell.regime.name == name).count();
        assert_eq!(cells[0].regime.name, "full");
        for name in [
            "full",
            "h2o 50%",
            "h2o 12.5%",
            "h2o+kvcrush 25%",
            "pyramidkv+adakv 50%",
            "d2o merge d2o 25%",
            "merge minicache",
            "nuq3",
            "int8",
            "int2",
            "f16",
        ] {
            assert_eq!(has(name), 1, "{name}");
        }
        assert_eq!((has("kcache:n=8"), has("f32")), (1, 0));
        for entry in registry::of_kind(Kind::Evict).filter(|entry| entry.name != "full") {
            assert_eq!(has(&format!("{} 25%", entry.name)), 1, "{}", entry.name);
        }
    }

    #[test]
    fn what_is_named_is_combined() {
        let grid = Grid {
            policies: vec!["full".into(), "h2o:recent=0.3".into()],
            budgets: vec!["64".into()],
            kv_dtypes: vec!["f32".into(), "int4".into()],
            ..Grid::default()
        };
        let names: Vec<String> = grid.cells().unwrap().into_iter().map(|cell| cell.regime.name).collect();
        assert_eq!(names, ["full", "h2o:recent=0.3 64", "int4", "h2o:recent=0.3 int4 64"]);
        let policies: Vec<String> =
            grid.cells().unwrap().into_iter().map(|cell| cell.regime.policy).collect();
        assert_eq!(policies[3], "h2o:budget=64,recent=0.3");
    }

    #[test]
    fn what_is_wrong_is_refused_at_once() {
        let wrong = |grid: Grid| grid.cells().unwrap_err().to_string();
        assert!(wrong(Grid { policies: vec!["h3o".into()], ..Grid::default() }).contains("h2o"));
        assert!(wrong(Grid { reads: vec!["kcache:n=0".into()], ..Grid::default() }).contains('n'));
        let budgets = vec!["0%".into()];
        assert!(wrong(Grid { policies: vec!["h2o".into()], budgets, ..Grid::default() }).contains("budget"));
        let long = fits(&Grid::default().cells().unwrap()[1].regime, 1000);
        assert!(long.is_ok(), "{long:?}");
    }
}
