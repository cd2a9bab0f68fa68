"""Short texts in more than ten scripts, with what tokenizers split differently. Lines are as long as the texts."""

# ruff: noqa: E501

TEN_SCRIPTS: dict[str, str] = {
    "latin": "Œuvre française à Zürich, naïve façade: Łódź, smørrebrød, ¿mañana? İstanbul'da ĲSSEL ﬁ ŉ It's WE'LL i'd",
    "combining": "e\u0301 n\u0303 a\u0308o\u0302 Z\u0351\u036b\u0343algo\u0334 \u1100\u1161\u11a8",
    "greek": "Η δικαιοσύνη εἶναι ἀρετή· πόσα; ΆΈΉ ς",
    "cyrillic": "Закон №152-ФЗ «О персональных данных» от 27.07.2006; Ґанок, Ёж, ѣ",
    "arabic": "اَلْقَانُونُ رقم ١٢٣ لسنة ٢٠٢٤، المادّة ٥؛ لا‌ضرر",
    "hebrew": "הַחֹק וְהַמִּשְׁפָּט, סעיף 12(א)׃ ״שלום״",
    "devanagari": "अनुच्छेद २१: क्षेत्राधिकार और विधि का शासन।",
    "bengali": "আইনের দৃষ্টিতে সকলে সমান ১২৩",
    "tamil": "சட்டத்தின் முன் அனைவரும் சமம் ௧௨௩",
    "thai": "กฎหมายแพ่งและพาณิชย์ มาตรา ๑๒๓๔ ฯลฯ",
    "georgian_armenian": "კანონი ყველასთვის; Օրենքի առջև",
    "chinese": "中华人民共和国民法典第一千零四十二条:禁止包办、買賣婚姻。「法律」㊣ 12345",
    "japanese": "日本国憲法第九条、ひらがなとカタカナ、ﾊﾝｶｸ〜ー々。①Ⅳ",
    "korean": "대한민국 헌법 제1조 ① 대한민국은 민주공화국이다. ㄱㄴㄷ",
    "amharic": "ሕግ ፩፪፫ የሰው ልጅ።",
    "emoji": "👩🏽‍⚖️⚖️ 👨‍👩‍👧‍👦 🇨🇭🏳️‍🌈 🙂🙂🙂 ☎️ 1️⃣",
    "math": "𝔏𝔢𝔤𝔞𝔩 ∑ᵢ xᵢ² ≤ ½ ∀ε>0 ⟨ψ|φ⟩ 10⁻³ ℵ₀",
    "digits": "0 12 123 1234 12345 3.14159 1,000,000.00 1e-5 ¼ ² ₃ Ⅷ ٣٤ ९ １２ 0x1F §12(3)",
    "spaces": "  two   three\ttab \t mixed\n\n\n  indented \r\nwindows\r\rold mac \u00a0nbsp\u2003em\u3000wide\u200bzero\u2028line ",
    "trailing": "ends with spaces    ",
    "leading": "\n\n   starts with newlines",
    "code": "def f(x: int) -> str:\n\treturn f\"{x!r:>10}\" if x >= 0 else '\\n'  # ok\nfor(;;){a[i]+=b->c&&~d||!e;}",
    "markup": "<p class=\"a\">&amp; [link](https://example.org/?q=a%20b#c)</p> | a | b |\n|---|:-:|\n```sql\nSELECT *;",
    "controls": "bell\u0007back\u0008form\u000cvertical\u000bescape\u001b[0m delete\u007f next\u0085 unit\u001f end\u0000nul",
    "private": "\ue000\uf8ff \ufffd \ufeffbom \u202eoverride\u202c soft\u00adhyphen",
    "long_word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3,
    "repeats": "aaaaaaaaaaaaaaaa ........ ======== -------- ________ !!!!????",
    "quotes": "“It’s” ‘they’ll’ «oui» „ja“ 'S 'T don't DON'T can''t",
}  # fmt: skip
