// What the page does once it is open.

function switchTheme() {
  const root = document.documentElement;
  const theme = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  root.dataset.theme = theme === "dark" ? "light" : "dark";
}

element("theme").addEventListener("click", switchTheme);
addEventListener("keydown", (event) => {
  const isTyped = event.ctrlKey || event.metaKey || event.target.matches("input[type=search], select");
  if (event.key === "t" && !isTyped) switchTheme();
});
if (element("gallery") || element("responses")) {
  const { runs, ppo } = await readRecords();
  const picture = readPictures();
  if (element("gallery")) openGallery(runs, picture);
  if (element("responses")) openResponses(ppo, picture);
  document.documentElement.dataset.ready = "";
}
