"""Codes as one HTML page: everything inside the file, nothing fetched, readable without JavaScript.

It is made of the templates of reports and looks like them; all text is escaped.
"""

from llm_unlearn.codebook.inspection import Inspection
from llm_unlearn.evaluation.html import templates
from llm_unlearn.paths import public_name


def codes_page(inspection: Inspection, target: str, control: str) -> str:
    """The page of an inspection. It quotes the texts of both sets.

    Args:
        inspection: of `inspect_codes`.
        target, control: names of the sets.
    """
    found = inspection.codebook
    names = {"target": target, "control": control}
    facts = {
        "model": public_name(found["model"]) if found["model"] else None,
        "layer": f"{found['layer']}, {found['site']}",
        "codes": f"{inspection.num_codes:,}, {found['top_s']} per token",
        **{
            f"{of} texts": f"{name}: {inspection.texts[of]:,} with {inspection.tokens[of]:,} tokens"
            for of, name in names.items()
        },
        "used by neither": f"{inspection.unused:,} codes",
        "deleted": f"{found['deleted']:,} codes",
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    page = templates("llm_unlearn.codebook").get_template("codes.html.j2")
    return page.render(inspection=inspection, facts=facts, names=names)
