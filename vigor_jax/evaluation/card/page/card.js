
function switchTheme() {
  const root = document.documentElement;
  const theme = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = theme === "dark" ? "light" : "dark";
}

document.getElementById("theme").addEventListener("click", switchTheme);
addEventListener("keydown", (event) => {
  if (event.key === "t" && !event.ctrlKey && !event.metaKey) switchTheme();
});
document.documentElement.dataset.ready = "";
