//! Configuration file, theme and colours: from arguments, file and environment to what is drawn with.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use etcetera::BaseStrategy;
use terminal_colorsaurus::{QueryOptions, ThemeMode};

use super::Failure;
use super::args::Look;
use crate::app::Config;
use crate::ui::theme::{BUILT_IN, ColorChoice, Depth, Styles, Symbols, Terminal, Theme, ThemeFile};

/// Longest configuration or theme file read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// A terminal that does not say its background by then is taken for a dark one.
const BACKGROUND_TIMEOUT: Duration = Duration::from_millis(200);

/// What things are drawn with.
pub(super) struct Appearance {
    pub(super) config: Config,
    pub(super) theme: String,
    depth: Depth,
    symbols: Symbols,
}

impl Appearance {
    /// Arguments win over the configuration file, the file over what the terminal says. `ask` lets the terminal be asked
    /// for its background; only a program about to take it over may.
    pub(super) fn resolve(look: &Look, ask: bool) -> Result<Self, Failure> {
        let config = read_config()?;
        let from_file = |value: &Option<String>| value.clone();
        let choice = match (look.color, from_file(&config.color)) {
            (Some(choice), _) => choice,
            (None, Some(word)) => clap::ValueEnum::from_str(&word, false).map_err(Failure::Input)?,
            (None, None) => ColorChoice::default(),
        };
        let symbols = match (look.symbols, from_file(&config.symbols)) {
            (Some(symbols), _) => symbols,
            (None, Some(word)) => clap::ValueEnum::from_str(&word, false).map_err(Failure::Input)?,
            (None, None) => Symbols::default(),
        };
        let terminal = Terminal::new(io::stdout().is_terminal(), |name| env::var(name).ok());
        let depth = Depth::detect(choice, &terminal);
        let theme = look
            .theme
            .clone()
            .or_else(|| from_file(&config.theme))
            .unwrap_or_else(|| if ask && is_light() { "light".into() } else { "dark".into() });
        let appearance = Self { config, theme, depth, symbols };
        appearance.styles(&appearance.theme)?;
        Ok(appearance)
    }

    /// The styles of a theme by name or file.
    pub(super) fn styles(&self, theme: &str) -> Result<Styles, Failure> {
        let is_file = Path::new(theme).extension().is_some_and(|extension| extension == "toml");
        let theme = if is_file { by_file(theme)? } else { by_name(theme)? };
        Ok(theme.styles(self.depth, self.symbols))
    }

    /// The styles for a picture: all colours, whatever the terminal can show, unless colour was refused.
    pub(super) fn picture(&self, look: &Look) -> Result<Styles, Failure> {
        let depth = if look.color == Some(ColorChoice::Never) { Depth::None } else { Depth::True };
        Self { depth, config: Config::default(), theme: self.theme.clone(), symbols: self.symbols }
            .styles(&self.theme)
    }

    pub(super) const fn depth(&self) -> Depth {
        self.depth
    }
}

/// Themes a person can choose from: the built-in ones and their own.
pub(super) fn theme_names() -> Vec<String> {
    let mut names: Vec<String> = BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect();
    let own = theme_folder().and_then(|folder| fs::read_dir(folder).ok());
    let mut own: Vec<String> = own
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            (path.extension()? == "toml")
                .then(|| path.file_stem().map(|s| s.to_string_lossy().into_owned()))?
        })
        .filter(|name| !names.contains(name))
        .collect();
    own.sort();
    names.extend(own);
    names
}

fn by_name(name: &str) -> Result<Theme, Failure> {
    Theme::load(name, &|name| {
        let path = theme_folder()?.join(format!("{name}.toml"));
        let text = read(&path).ok()?;
        Some(ThemeFile { path: path.display().to_string(), text })
    })
    .map_err(Failure::input)
}

fn by_file(file: &str) -> Result<Theme, Failure> {
    let text = read(Path::new(file)).map_err(|e| Failure::Input(format!("{file}: cannot be read: {e}")))?;
    let own = Path::new(file).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Theme::load(&own, &|name| (name == own).then(|| ThemeFile { path: file.to_owned(), text: text.clone() }))
        .map_err(Failure::input)
}

/// Where the configuration file is looked for, in order.
pub(super) fn config_path() -> Option<PathBuf> {
    if let Some(path) = env::var_os("KVISTA_CONFIG") {
        return Some(path.into());
    }
    Some(config_folder()?.join("config.toml"))
}

fn config_folder() -> Option<PathBuf> {
    // XDG also on a Mac: that is where people look for the files of a terminal program.
    etcetera::base_strategy::Xdg::new().ok().map(|xdg| xdg.config_dir().join("kvista"))
}

fn theme_folder() -> Option<PathBuf> {
    config_folder().map(|folder| folder.join("themes"))
}

/// The configuration; all defaults where there is no file.
pub(super) fn read_config() -> Result<Config, Failure> {
    let Some(path) = config_path() else { return Ok(Config::default()) };
    let shown = path.display().to_string();
    match read(&path) {
        Ok(text) => Config::parse(&text, &shown).map_err(Failure::input),
        Err(error) if error.kind() == io::ErrorKind::NotFound && env::var_os("KVISTA_CONFIG").is_none() => {
            Ok(Config::default())
        }
        Err(error) => Err(Failure::Input(format!("{shown}: cannot be read: {error}"))),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = fs::File::open(path)?;
    io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE_BYTES + 1), &mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("longer than 1 MiB"));
    }
    Ok(text)
}

fn is_light() -> bool {
    let mut options = QueryOptions::default();
    options.timeout = BACKGROUND_TIMEOUT;
    matches!(terminal_colorsaurus::theme_mode(options), Ok(ThemeMode::Light))
}
