"""Language codes from what clients send: codes in any case, with a region or a script, of three letters, and names."""

from __future__ import annotations

DETECT = frozenset({"auto", "detect", "und", "mul"})
"""Values that ask for detection, as leaving the field out does."""

_TABLE = """\
en english eng|zh chinese mandarin zho chi cmn|de german deu ger|es spanish castilian spa|ru russian rus|ko korean kor
fr french fra fre|ja japanese jpn jp|pt portuguese por|tr turkish tur|pl polish pol|ca catalan valencian cat
nl dutch flemish nld dut|ar arabic ara|sv swedish swe|it italian ita|id indonesian ind in|hi hindi hin|fi finnish fin
vi vietnamese vie|he hebrew heb iw|uk ukrainian ukr|el greek ell gre|ms malay msa may|cs czech ces cze
ro romanian moldavian moldovan ron rum mo|da danish dan|hu hungarian hun|ta tamil tam|no norwegian nor nb nob bokmal
th thai tha|ur urdu urd|hr croatian hrv|bg bulgarian bul|lt lithuanian lit|la latin lat|mi maori mri mao
ml malayalam mal|cy welsh cym wel|sk slovak slk slo|te telugu tel|fa persian farsi fas per|lv latvian lav
bn bengali bangla ben|sr serbian srp|az azerbaijani aze|sl slovenian slovene slv|kn kannada kan|et estonian est
mk macedonian mkd mac|br breton bre|eu basque eus baq|is icelandic isl ice|hy armenian hye arm|ne nepali nep
mn mongolian mon|bs bosnian bos|kk kazakh kaz|sq albanian sqi alb|sw swahili swa|gl galician glg|mr marathi mar
pa punjabi panjabi pan|si sinhala sinhalese sin|km khmer khm|sn shona sna|yo yoruba yor|so somali som
af afrikaans afr|oc occitan oci|ka georgian kat geo|be belarusian bel|tg tajik tgk|sd sindhi snd|gu gujarati guj
am amharic amh|yi yiddish yid ji|lo lao|uz uzbek uzb|fo faroese fao|ht haitian haitian_creole hat|ps pashto pushto pus
tk turkmen tuk|nn nynorsk nno|mt maltese mlt|sa sanskrit san|lb luxembourgish letzeburgesch ltz
my burmese myanmar mya bur|bo tibetan bod tib|tl tagalog filipino tgl fil
mg malagasy mlg|as assamese asm|tt tatar tat|haw hawaiian|ln lingala lin
ha hausa hau|ba bashkir bak|jw javanese jav jv|su sundanese sun|yue cantonese"""

_CODES = {
    name.replace("_", "-"): names.split()[0] for line in _TABLE.splitlines() for names in line.split("|")
    for name in names.split()
}  # fmt: skip


def language_code(text: str) -> str | None:
    """Whisper's code of a language: `en` for `EN`, `en-US`, `en_GB.UTF-8`, `eng` and `English`; None where
    detection is requested. A code that is not in the table is returned in lower case: the model may know it.

    Raises `ValueError` for a text that is neither a code nor a name.
    """
    words = "-".join(text.strip().lower().partition(".")[0].replace("_", " ").replace("-", " ").split())
    if words in DETECT:
        return None
    primary = words.partition("-")[0]
    if known := _CODES.get(words) or _CODES.get(primary):
        return known
    if 2 <= len(primary) <= 3 and primary.isascii() and primary.isalpha():
        return primary
    raise ValueError("is neither the code nor the name of a language; send a code such as en")
