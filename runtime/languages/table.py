"""The languages that are known."""

from __future__ import annotations

# A word for each language: its codes, then its names in English. The codes are that of two letters (ISO 639-1), that of
# three (639-2/T), the other one that is written (639-2/B), or the first again; then what is found for it elsewhere: in
# old files, for the main one of several languages (Unicode CLDR), and as QuickTime has it (sve).
NAMED = """
    aa=aar=Afar ab=abk=Abkhazian ae=ave=Avestan af=afr=Afrikaans ak=aka=Akan am=amh=Amharic an=arg=Aragonese
    ar=ara=ara=arb=Arabic as=asm=Assamese av=ava=Avaric ay=aym=Aymara az=aze=Azerbaijani ba=bak=Bashkir
    be=bel=Belarusian bg=bul=Bulgarian bh=bih=Bihari bi=bis=Bislama bm=bam=Bambara bn=ben=Bengali=Bangla
    bo=bod=tib=Tibetan br=bre=Breton bs=bos=Bosnian ca=cat=Catalan=Valencian ce=che=Chechen ch=cha=Chamorro
    co=cos=Corsican cr=cre=Cree cs=ces=cze=Czech cu=chu=Church_Slavonic cv=chv=Chuvash cy=cym=wel=Welsh
    da=dan=Danish de=deu=ger=German dv=div=Divehi=Maldivian dz=dzo=Dzongkha ee=ewe=Ewe el=ell=gre=Greek
    en=eng=English eo=epo=Esperanto es=spa=Spanish=Castilian et=est=Estonian eu=eus=baq=Basque
    fa=fas=per=pes=Persian=Farsi ff=ful=Fulah fi=fin=Finnish fj=fij=Fijian fo=fao=Faroese fr=fra=fre=French
    fy=fry=Frisian=Western_Frisian ga=gle=Irish gd=gla=Scottish_Gaelic=Gaelic gl=glg=Galician gn=grn=Guarani
    gu=guj=Gujarati gv=glv=Manx ha=hau=Hausa he=heb=heb=iw=Hebrew hi=hin=Hindi ho=hmo=Hiri_Motu
    hr=hrv=hrv=scr=Croatian ht=hat=Haitian_Creole=Haitian hu=hun=Hungarian hy=hye=arm=Armenian hz=her=Herero
    ia=ina=Interlingua id=ind=ind=in=Indonesian ie=ile=Interlingue=Occidental ig=ibo=Igbo ii=iii=Sichuan_Yi=Nuosu
    ik=ipk=Inupiaq io=ido=Ido is=isl=ice=Icelandic it=ita=Italian iu=iku=Inuktitut ja=jpn=Japanese
    jv=jav=jav=jw=Javanese ka=kat=geo=Georgian kg=kon=Kongo ki=kik=Kikuyu kj=kua=Kuanyama kk=kaz=Kazakh
    kl=kal=Greenlandic=Kalaallisut km=khm=Khmer kn=kan=Kannada ko=kor=Korean kr=kau=Kanuri ks=kas=Kashmiri
    ku=kur=Kurdish kv=kom=Komi kw=cor=Cornish ky=kir=Kyrgyz=Kirghiz la=lat=Latin lb=ltz=Luxembourgish
    lg=lug=Luganda=Ganda li=lim=Limburgish ln=lin=Lingala lo=lao=Lao lt=lit=Lithuanian lu=lub=Luba-Katanga
    lv=lav=Latvian mg=mlg=Malagasy mh=mah=Marshallese mi=mri=mao=Maori=Māori mk=mkd=mac=Macedonian ml=mal=Malayalam
    mn=mon=Mongolian mr=mar=Marathi ms=msa=may=zsm=Malay mt=mlt=Maltese my=mya=bur=Burmese=Myanmar na=nau=Nauru
    nb=nob=Norwegian_Bokmål=Bokmål nd=nde=North_Ndebele ne=nep=Nepali ng=ndo=Ndonga nl=nld=dut=Dutch=Flemish
    nn=nno=Norwegian_Nynorsk=Nynorsk no=nor=Norwegian nr=nbl=South_Ndebele nv=nav=Navajo ny=nya=Chichewa=Nyanja
    oc=oci=Occitan=Provençal oj=oji=Ojibwa om=orm=Oromo or=ori=Odia=Oriya os=oss=Ossetian pa=pan=Punjabi=Panjabi
    pi=pli=Pali pl=pol=Polish ps=pus=Pashto=Pushto pt=por=Portuguese qu=que=Quechua rm=roh=Romansh
    rn=run=Kirundi=Rundi ro=ron=rum=mo=mol=Romanian=Moldavian=Moldovan ru=rus=Russian rw=kin=Kinyarwanda
    sa=san=Sanskrit sc=srd=Sardinian sd=snd=Sindhi se=sme=Northern_Sami sg=sag=Sango sh=hbs=Serbo-Croatian
    si=sin=Sinhala=Sinhalese sk=slk=slo=Slovak sl=slv=Slovenian sm=smo=Samoan sn=sna=Shona so=som=Somali
    sq=sqi=alb=Albanian sr=srp=srp=scc=Serbian ss=ssw=Swati st=sot=Sotho=Southern_Sotho su=sun=Sundanese
    sv=swe=swe=sve=Swedish sw=swa=swa=swh=Swahili ta=tam=Tamil te=tel=Telugu tg=tgk=Tajik th=tha=Thai
    ti=tir=Tigrinya tk=tuk=Turkmen tl=tgl=Tagalog tn=tsn=Tswana to=ton=Tongan tr=tur=Turkish ts=tso=Tsonga
    tt=tat=Tatar tw=twi=Twi ty=tah=Tahitian ug=uig=Uyghur=Uighur uk=ukr=Ukrainian ur=urd=Urdu uz=uzb=Uzbek
    ve=ven=Venda vi=vie=Vietnamese vo=vol=Volapük wa=wln=Walloon wo=wol=Wolof xh=xho=Xhosa yi=yid=yid=ji=Yiddish
    yo=yor=Yoruba za=zha=Zhuang zh=zho=chi=cmn=Chinese=Mandarin zu=zul=Zulu fil=Filipino gsw=Swiss_German
    haw=Hawaiian hak=Hakka nan=Hokkien wuu=Wu yue=Cantonese ceb=Cebuano nds=Low_German prs=Dari
"""
# The others of ISO 639-2, and some of 639-3 that many speak.
UNNAMED = """
    ace ach ada ady afa afh ain akk ale alg alt ang anp apa apc arc arn arp art arw ary arz ast ath aus awa bad bai
    bal ban bas bat bej bem ber bho bik bin bla bnt bra btk bua bug byn cad cai car cau cel chb chg chk chm chn cho
    chp chr chy ckb cmc cnr cop cpe cpf cpp crh crp csb cus dak dar day del den dgr din doi dra dsb dua dum dyu efi
    egy eka elx enm ewo fan fat fiu fon frm fro frr frs fur gaa gay gba gem gez gil gmh goh gon gor got grb grc gwi
    hai hil him hit hmn hsb hup iba ijo ilo inc ine inh ira iro jbo jpr jrb kaa kab kac kam kar kaw kbd kha khi kho
    kmb kmr kok kos kpe krc krl kro kru kum kut lad lah lam lez lol loz lua lui lun luo lus lzh mad mag mai mak man
    map mas mdf mdr men mga mic min mis mkh mnc mni mno moh mos mul mun mus mwl mwr myn myv nah nai nap new nia nic
    niu nog non nqo nso nub nwc nym nyn nyo nzi osa ota oto paa pag pal pam pap pau peo phi phn pnb pon pra pro raj
    rap rar roa rom rup sad sah sai sal sam sas sat scn sco sel sem sga sgn shn sid sio sit sla sma smi smj smn sms
    snk sog son srn srr ssa suk sus sux syc syr tai tem ter tet tig tiv tkl tlh tli tmh tog tpi tsi tum tup tut tvl
    tyv udm uga umb und vai vec vot wak wal war was wen xal yao yap ypk zap zbl zen zgh znd zun zxx zza
"""
