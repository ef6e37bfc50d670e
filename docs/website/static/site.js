// Mends Furo's pages for readers with a keyboard or a screen reader.

addEventListener("DOMContentLoaded", () => {
  for (const caption of document.querySelectorAll(".caption[role=heading]")) caption.ariaLevel = "2";
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "This page");
  for (const heading of document.querySelectorAll("#search-results > h2")) heading.ariaLevel = "1";
  for (const empty of document.querySelectorAll("th")) {
    if (!empty.textContent.trim()) empty.replaceWith(document.createElement("td"));
  }
  const focusable = () => {
    for (const part of document.querySelectorAll("pre, .table-wrapper")) {
      if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  };
  addEventListener("resize", focusable);
  focusable();
});
